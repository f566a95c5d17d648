"""Claims of fewstep/training/multitask.py."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from claims.common import F64, Claim, Outcome, arms, experiment, tolerance
from claims.level_tasks import CLUSTERS, OPTIONS, STEPS, WHAT, by_cluster, cuts, digits, held_out, plain, untrained
from claims.trained import fit
from fewstep.core.methods import find
from fewstep.training.multitask import bargain

NAMES = ("pcgrad", "nash-mtl", "uncertainty-weighting")
AGAINST = "the plain mean of the losses, as many images"


@functools.cache
def losses(method: str | None, seed: int) -> Tensor:
    """Held-out losses at each level, (32,)."""
    if method is None:
        return held_out(plain(seed))
    backward = find(method, room="training")(cuts())
    return held_out(fit(untrained(seed), digits("train"), steps=STEPS, seed=seed, backward=backward, **OPTIONS))


@experiment
def _overall(seed: int, method: str) -> Outcome:
    about = f"{WHAT}, {CLUSTERS} clusters by log-SNR; loss of eps over 32 levels"
    return arms(seed, lambda m, s: float(losses(m, s).mean()), method, None, AGAINST, about, unit="held-out loss")


@experiment
def _each(seed: int, method: str) -> Outcome:
    """The geometric mean over clusters counts a relative gain alike in each."""

    def figure(which: str | None, number: int) -> float:
        return float(by_cluster(losses(which, number)).log().mean().exp())

    about, unit = f"{WHAT}, {CLUSTERS} clusters by log-SNR", "geometric mean of the clusters' held-out losses"
    return arms(seed, figure, method, None, AGAINST, about, unit=unit)


def _bargain(seed: int) -> Outcome:
    """How far the weights are from `G a = 1 / a`, for gradients of lengths from 1 to 1000."""
    generator, worst = torch.Generator().manual_seed(seed), 0.0
    for _ in range(20):
        gradients = torch.randn(4, 9, generator=generator, dtype=F64)
        gradients = gradients * torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=F64)[:, None]
        a = bargain(gradients @ gradients.T)
        worst = max(worst, float((a * (gradients @ gradients.T @ a) - 1).abs().max()))
    return tolerance(worst, 1e-3, "20 sets of four gradients", "largest |a G a - 1|")


CLAIMS = (
    *(Claim(name, "a lower held-out loss than plain training", _overall(name), quick=False) for name in NAMES),
    *(Claim(name, "lower held-out losses of its clusters than plain training", _each(name), quick=False)
      for name in NAMES),
    Claim("nash-mtl", "the weights meet the equation of the bargaining solution", _bargain),
)  # fmt: skip
