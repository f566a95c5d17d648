"""Claims of fewstep/training/couplings.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy import stats
from torch import Tensor

from claims.common import Claim, Outcome, arms, compared, experiment, tolerance
from claims.trained import NetworkDenoiser
from claims.transports import (
    BEND,
    DIGITS,
    PLANE,
    W2,
    N,
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


def _against_base(seed: int, figure: Callable[[str, int], float], coupling: str, about: str, unit: str) -> Outcome:
    return arms(seed, figure, coupling, BASE, "independent noise", about, unit=unit)


@experiment
def _bends(seed: int, coupling: str, flow: Callable[[int, str], NetworkDenoiser], n: int, what: str) -> Outcome:
    return _against_base(seed, lambda c, s: bend(flow(s, c), s, n), coupling, f"{what}; 50 Euler steps", BEND)


@experiment
def _plane_error(seed: int, coupling: str) -> Outcome:
    exact = sum(map(floor, (seed, seed + 1, seed + 2))) / 3
    about = f"{PLANE}; 5 Euler steps, 1024 samples, exact ones have {exact:.2g}"
    return _against_base(seed, lambda c, s: plane_error(plane_flow(s, c), s, 5), coupling, about, W2)


@experiment
def _digits_error(seed: int, coupling: str) -> Outcome:
    about, unit = f"{DIGITS}; 5 Euler steps, 1000 samples", "Frechet distance in pixels"
    return _against_base(seed, lambda c, s: digits_error(digits_flow(s, c), s, 5), coupling, about, unit)


def _batch(seed: int, n: int = 256) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    images = load("train")[0]
    rows = torch.randperm(len(images), generator=generator)[:n]
    return images[rows], torch.randn(n, *images.shape[1:], generator=generator), generator


def _dependence(seed: int) -> Outcome:
    """The mean inner product of a sample, centred, with its noise: zero where neither says anything of the other."""
    found = []
    for name in (BASE, "minibatch-ot"):
        x0, eps, generator = _batch(seed)
        product = (x0 - x0.mean(0)) * find(name, "training")(x0, eps, generator)
        found.append(abs(float(product.flatten(1).sum(1).mean())))
    return compared(found, "minibatch-ot", "256 digits", unit="|mean inner product of x0 and eps|")


def _rounded(seed: int) -> Outcome:
    """How far the assignment from 16-bit numbers costs more than the exact one."""
    x0, eps, generator = _batch(seed)
    pairs = (x0 - immiscible(x0, eps, generator, bits=bits) for bits in (16, 32))
    half, exact = (float(pair.flatten(1).norm(dim=1).mean()) for pair in pairs)
    return tolerance(half / exact - 1, 1e-3, "256 digits, mean distance", "relative excess of the cost")


def _gaussian(seed: int) -> Outcome:
    """Kolmogorov-Smirnov distance of 40 batches' assigned noise from the normal distribution."""
    pooled = torch.cat([immiscible(*_batch(seed * 1000 + part, 128)) for part in range(40)]).flatten()
    limit = 1.63 / len(pooled) ** 0.5  # passed by 99 % of samples of independent normals
    found = float(stats.kstest(pooled.numpy(), "norm").statistic)
    against, about = "the 1 % limit of the Kolmogorov-Smirnov test", "40 batches of 128 digits, all values pooled"
    return Outcome(found, limit, against, about, unit="distance of distribution functions")


CLAIMS = (
    Claim(BASE, "noise says nothing of the sample it goes with", _dependence),
    Claim("immiscible", "half precision costs no more than a thousandth", _rounded),
    Claim("immiscible", "pooled noise passes a test of normality", _gaussian),
    *(Claim(name, sentence, measured(name), quick=False)
      for name in ("minibatch-ot", "immiscible", "immiscible-knn")
      for sentence, measured in (
          ("paths to a plane's mixture bend less", lambda name: _bends(name, plane_flow, N, PLANE)),
          ("five steps land closer to a plane's mixture", _plane_error),
          ("paths to digits bend less", lambda name: _bends(name, digits_flow, 128, DIGITS)),
          ("five steps give better digits", _digits_error),
      )),
)  # fmt: skip
