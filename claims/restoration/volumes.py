"""Ellipsoids in a volume, each slice seen from four angles: a prior of slices, and what its neighbours tell."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

import fewstep as fs
from claims.claim import Claim, over_seeds, slow
from claims.common import F64, VP, GaussianMixture
from fewstep.data import phantoms
from fewstep.metrics.psnr import psnr
from fewstep.operators.operator import LinearOperator
from fewstep.restoration.mbir import MBIR, Slices, across

SIDE, VOLUMES, TRAINED, NOISE, NFE = 8, 8, 400, 0.05, 30
ABOUT = "8 volumes of 8 x 8 x 8 ellipsoids, 4 angles a slice, noise 0.05, 30 evaluations"
WEIGHTS = (0.005, 0.02, 0.1)  # total variation alone is given the best of them, seen from the truth


@functools.cache
def prior() -> GaussianMixture:
    """A mixture of 8 fitted to the slices of other volumes."""
    data = phantoms.draw(torch.arange(TRAINED), size=(SIDE,) * 3).double().flatten(0, 2)[:, None]
    return GaussianMixture.fitted(data, 8, VP())


@functools.cache
def problem(seed: int) -> tuple[Tensor, LinearOperator, Tensor]:
    rows = torch.arange(VOLUMES) + VOLUMES * seed
    truth = phantoms.draw(rows, "validation", (SIDE,) * 3)[:, 0].double()
    a = fs.operators.Projections(4).fit((SIDE,) * 3)
    return truth, a, a.measure(truth, NOISE, seed=seed)


@functools.cache
def volumes(how: str, seed: int) -> Tensor:
    truth, a, y = problem(seed)
    if how == "variation":
        found = [_by_variation(a, y, weight) for weight in WEIGHTS]
        return min(found, key=lambda x: float((x - truth).square().mean()))
    options = {"weight": 0.0 if how == "slices" else 0.02}
    model = Slices(prior(), SIDE)
    made: Tensor = fs.restore(model, y, a, NOISE, method="mbir", options=options, nfe=NFE, seed=seed, dtype=F64)
    return made


def _by_variation(a: LinearOperator, y: Tensor, weight: float) -> Tensor:
    x = torch.zeros(len(y), *(SIDE,) * 3, dtype=F64)
    zero = torch.zeros_like(across(x))
    return MBIR(weight=weight, iterations=100, inner=20).admm(a, x, y, zero, zero)[0]


def decibels(x: Tensor, truth: Tensor) -> float:
    return psnr(x, truth).value


def jitter(x: Tensor, truth: Tensor) -> float:
    """The root mean square of what neighbouring slices differ by beside what they should."""
    return float(across(x - truth).square().mean().sqrt())


def beats(sentence: str, what: Callable[[Tensor, Tensor], float], against: str, said: str) -> Claim:
    def run(seed: int) -> tuple[float, float]:
        truth = problem(seed)[0]
        return what(volumes("mbir", seed), truth), what(volumes(against, seed), truth)

    better, unit = ("high", "PSNR in dB") if what is decibels else ("low", "root mean square")
    return slow("mbir", sentence, over_seeds(run, said, ABOUT, better=better, unit=unit))


CLAIMS = (
    beats("ellipsoids are clearer than slice by slice", decibels, "slices", "the same without variation (weight 0)"),
    beats("ellipsoids are clearer than by variation across slices alone", decibels, "variation",
          "variation alone, the best of 3 weights"),
    beats("slices of ellipsoids jitter less", jitter, "slices", "the same without variation (weight 0)"),
)  # fmt: skip
