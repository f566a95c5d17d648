"""Claims of fewstep/training/couplings.py."""

from __future__ import annotations

import functools

import torch
from scipy import stats
from torch import Tensor

from claims.claim import Claim, Outcome, over_seeds
from claims.transports import (
    DIGITS,
    PLANE,
    SEEDS,
    bend,
    digits_error,
    digits_flow,
    floor,
    plane_error,
    plane_flow,
)
from fewstep.core.methods import find
from fewstep.data.digits import load
from fewstep.training.couplings import immiscible

BASE = "independent-coupling"


def _plane_bend(coupling: str, seed: int) -> Outcome:
    return over_seeds(
        lambda s: (bend(plane_flow(s, coupling), s), bend(plane_flow(s, BASE), s)),
        [seed + s for s in SEEDS],
        "independent noise",
        f"{PLANE}; 50 Euler steps",
        unit="curvature over squared chord",
    )


def _plane_error(coupling: str, seed: int) -> Outcome:
    seeds = [seed + s for s in SEEDS]
    return over_seeds(
        lambda s: (plane_error(plane_flow(s, coupling), s, 5), plane_error(plane_flow(s, BASE), s, 5)),
        seeds,
        "independent noise",
        f"{PLANE}; 5 Euler steps, 1024 samples, exact ones have {sum(map(floor, seeds)) / len(seeds):.2g}",
        unit="W2 to the truth",
    )


def _digits_bend(coupling: str, seed: int) -> Outcome:
    return over_seeds(
        lambda s: (bend(digits_flow(s, coupling), s, 128), bend(digits_flow(s, BASE), s, 128)),
        [seed + s for s in SEEDS],
        "independent noise",
        f"{DIGITS}; 50 Euler steps",
        unit="curvature over squared chord",
    )


def _digits_error(coupling: str, seed: int) -> Outcome:
    return over_seeds(
        lambda s: (digits_error(digits_flow(s, coupling), s, 5), digits_error(digits_flow(s, BASE), s, 5)),
        [seed + s for s in SEEDS],
        "independent noise",
        f"{DIGITS}; 5 Euler steps, 1000 samples",
        unit="Frechet distance in pixels",
    )


def _batch(seed: int, n: int = 256) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    images = load("train")[0]
    rows = torch.randperm(len(images), generator=generator)[:n]
    return images[rows], torch.randn(n, *images.shape[1:], generator=generator), generator


def _dependence(seed: int) -> Outcome:
    """The mean inner product of a sample, centred, with its noise: zero where neither says anything of the other."""
    found = {}
    for name in (BASE, "minibatch-ot"):
        x0, eps, generator = _batch(seed)
        found[name] = abs(
            float(((x0 - x0.mean(0)) * find(name, "training")(x0, eps, generator)).flatten(1).sum(1).mean())
        )
    return Outcome(
        found[BASE], found["minibatch-ot"], "minibatch-ot", "256 digits", unit="|mean inner product of x0 and eps|"
    )


def _rounded(seed: int) -> Outcome:
    """How far the assignment from 16-bit numbers costs more than the exact one."""
    x0, eps, generator = _batch(seed)
    half, exact = (
        float((x0 - immiscible(x0, eps, generator, bits=bits)).flatten(1).norm(dim=1).mean()) for bits in (16, 32)
    )
    return Outcome(half / exact - 1, 1e-3, "tolerance", "256 digits, mean distance", unit="relative excess of the cost")


def _gaussian(seed: int) -> Outcome:
    """Kolmogorov-Smirnov distance of 40 batches' assigned noise from the normal distribution."""
    pooled = torch.cat([immiscible(*_batch(seed * 1000 + part, 128)) for part in range(40)]).flatten()
    limit = 1.63 / len(pooled) ** 0.5  # passed by 99 % of samples of independent normals
    return Outcome(
        float(stats.kstest(pooled.numpy(), "norm").statistic),
        limit,
        "the 1 % limit of the Kolmogorov-Smirnov test",
        "40 batches of 128 digits, all values pooled",
        unit="distance of distribution functions",
    )


CLAIMS = (
    Claim(BASE, "noise says nothing of the sample it goes with", _dependence),
    Claim("immiscible", "half precision costs no more than a thousandth", _rounded),
    Claim("immiscible", "pooled noise passes a test of normality", _gaussian),
    *(
        Claim(name, sentence, functools.partial(run, name), quick=False)
        for name in ("minibatch-ot", "immiscible", "immiscible-knn")
        for sentence, run in (
            ("paths to a plane's mixture bend less", _plane_bend),
            ("five steps land closer to a plane's mixture", _plane_error),
            ("paths to digits bend less", _digits_bend),
            ("five steps give better digits", _digits_error),
        )
    ),
)
