"""Claims of metrics that compare restored samples with their originals."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome, experiment, tolerance
from fewstep.data.open import open_built_in
from fewstep.metrics.energy_score import energy_score
from fewstep.metrics.ssim import ssim


@experiment
def proper(seed: int) -> Outcome:
    """Draws of the true law against draws of one that is half as wide: standard normals, whose score is known."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    draws = torch.randn(4000, 8, 1, generator=generator, dtype=torch.float64)
    return Outcome(energy_score(draws, truth).value, energy_score(draws / 2, truth).value, "a law half as wide",
                   "4000 standard normals, 8 draws of each", unit="energy score")  # fmt: skip


@experiment
def original(seed: int) -> Outcome:
    pictures = open_built_in("digits", split="validation").images[:20]
    return tolerance(abs(ssim(pictures, pictures).value - 1), 1e-12, "digits and themselves", "|ssim - 1|")


CLAIMS = (
    Claim("energy-score", "is lower for the true law than for a narrow one", proper()),
    Claim("ssim", "is 1 for the originals", original()),
)
