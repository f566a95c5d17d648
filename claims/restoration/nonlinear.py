"""What takes measurements that are not linear, and counts: dps and daps against posteriors that are known on a grid."""

from __future__ import annotations

import torch

from claims.claim import Claim, over_seeds, slow
from claims.grids import DRAWS, MEASUREMENTS, PROBLEMS, cell

NFE = 40
RIVAL = "dps (three passes an evaluation against one)"
DISTANCE = "sliced Wasserstein distance to the posterior on a grid"
ABOUT = "mixture of 4, {}, {} measurements x {} draws, {} evaluations"


def _about(problem: str) -> str:
    return ABOUT.format(problem, MEASUREMENTS, DRAWS, NFE)


def nearer(problem: str) -> Claim:
    def run(seed: int) -> tuple[float, float]:
        own = cell(problem, seed)
        daps, dps = (own.distance(own.restored(method, NFE, seed), seed) for method in ("daps", "dps"))
        return daps, dps

    return slow("daps", f"is nearer to the posterior than dps, {problem}",
                over_seeds(run, RIVAL, _about(problem), unit=DISTANCE))  # fmt: skip


def halves(method: str, problem: str) -> Claim:
    """Against half the distance of draws of the prior, which know nothing of y."""

    def run(seed: int) -> tuple[float, float]:
        own = cell(problem, seed)
        unknowing = torch.stack([own.model.sample(DRAWS, seed=seed + 9)] * MEASUREMENTS)
        return own.distance(own.restored(method, NFE, seed), seed), own.distance(unknowing, seed) / 2

    return slow(method, f"comes within half the prior's distance of the posterior, {problem}",
                over_seeds(run, "half the distance of the prior", _about(problem), unit=DISTANCE))  # fmt: skip


def masses(seed: int) -> tuple[float, float]:
    own = cell("magnitudes", seed)
    daps, dps = (own.mass(own.restored(method, NFE, seed)) for method in ("daps", "dps"))
    return daps, dps


CLAIMS = (
    *(nearer(problem) for problem in PROBLEMS),
    *(halves(method, problem) for method in ("dps", "daps") for problem in PROBLEMS),
    slow("daps", "its modes have more of their mass than those of dps, magnitudes",
         over_seeds(masses, RIVAL, _about("magnitudes"),
                    unit="error of the modes' mass")),
)  # fmt: skip
