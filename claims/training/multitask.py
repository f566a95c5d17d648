"""Claims of fewstep/training/multitask.py."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, over_seeds
from claims.level_tasks import CLUSTERS, OPTIONS, SEEDS, STEPS, WHAT, by_cluster, cuts, digits, fresh, held_out, plain
from fewstep.core.methods import find
from fewstep.training.fit import fit


@functools.cache
def losses(method: str | None, seed: int) -> Tensor:
    """Held-out losses at each level, (32,)."""
    if method is None:
        return held_out(plain(seed))
    backward = find(method, room="training")(cuts())
    return held_out(fit(fresh(seed), digits("train"), steps=STEPS, seed=seed, backward=backward, **OPTIONS))


def _overall(method: str, seed: int) -> Outcome:
    return over_seeds(
        lambda number: (float(losses(method, number).mean()), float(losses(None, number).mean())),
        SEEDS,
        "the plain mean of the losses, as many images",
        f"{WHAT}, {CLUSTERS} clusters by log-SNR; loss of eps over 32 levels",
        unit="held-out loss",
    )


def _each(method: str, seed: int) -> Outcome:
    """The geometric mean over clusters counts a relative gain alike in each."""

    def figure(which: str | None, number: int) -> float:
        return float(by_cluster(losses(which, number)).log().mean().exp())

    return over_seeds(
        lambda number: (figure(method, number), figure(None, number)),
        SEEDS,
        "the plain mean of the losses, as many images",
        f"{WHAT}, {CLUSTERS} clusters by log-SNR",
        unit="geometric mean of the clusters' held-out losses",
    )


def _bargain(seed: int) -> Outcome:
    """How far the weights are from `G a = 1 / a`, for gradients of lengths from 1 to 1000."""
    from fewstep.training.multitask import bargain

    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for _ in range(20):
        gradients = torch.randn(4, 9, generator=generator, dtype=torch.float64)
        gradients = gradients * torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64)[:, None]
        a = bargain(gradients @ gradients.T)
        worst = max(worst, float((a * (gradients @ gradients.T @ a) - 1).abs().max()))
    return Outcome(worst, 1e-3, "tolerance", "20 sets of four gradients", unit="largest |a G a - 1|")


NAMES = ("pcgrad", "nash-mtl", "uncertainty-weighting")
CLAIMS = (
    *(
        Claim(name, "a lower held-out loss than plain training", functools.partial(_overall, name), quick=False)
        for name in NAMES
    ),
    *(
        Claim(
            name,
            "lower held-out losses of its clusters than plain training",
            functools.partial(_each, name),
            quick=False,
        )
        for name in NAMES
    ),
    Claim("nash-mtl", "the weights meet the equation of the bargaining solution", _bargain),
)
