"""Restoration where the posterior is known: mixtures of 16 numbers, their measurements, and distances to the truth."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fewstep as fs
from claims.common import F64, VP, GaussianMixture, sliced
from fewstep.operators.operator import LinearOperator
from fewstep.restoration.calibrate import calibrate
from fewstep.restoration.restore import restore

NUMBERS, COMPONENTS = 16, 6
MEASUREMENTS, DRAWS = 6, 400
CALIBRATED_ON = 4000
OPERATORS = ("half seen", "2x smaller", "blurred", "6 projections")
DISTANCE = "sliced Wasserstein distance to the exact posterior"


@functools.cache
def law(seed: int) -> GaussianMixture:
    """Six equal components: means 0.5 N(0, 1), deviations 0.05 to 0.4 along axes of their own. Calibrated."""
    generator = torch.Generator().manual_seed(seed)
    means = 0.5 * torch.randn(COMPONENTS, NUMBERS, generator=generator, dtype=F64)
    std = 0.05 + 0.35 * torch.rand(COMPONENTS, NUMBERS, generator=generator, dtype=F64)
    basis, _ = torch.linalg.qr(torch.randn(COMPONENTS, NUMBERS, NUMBERS, generator=generator, dtype=F64))
    model = GaussianMixture(torch.ones(COMPONENTS), means, basis @ torch.diag_embed(std**2) @ basis.mT, VP())
    calibrate(model, model.sample(CALIBRATED_ON, seed=seed + 1), n=CALIBRATED_ON)
    return model


@functools.cache
def operator(name: str, seed: int) -> LinearOperator:
    """One of `OPERATORS`; the places that are seen and the projections follow from the seed."""
    generator = torch.Generator().manual_seed(seed + 100)
    if name == "half seen":
        mask = torch.zeros(NUMBERS, dtype=F64)
        mask[torch.randperm(NUMBERS, generator=generator)[: NUMBERS // 2]] = 1
        made = fs.operators.Inpaint(mask)
    elif name == "2x smaller":
        made = fs.operators.Downsample(2)
    elif name == "blurred":
        made = fs.operators.Blur("gaussian", width=1.0)
    else:
        frame, _ = torch.linalg.qr(torch.randn(NUMBERS, 6, generator=generator, dtype=F64))
        made = fs.operators.Matrix(frame.T)
    return made.fit((NUMBERS,))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Cell:
    """A mixture, an operator and a noise: six measurements, and draws of their exact posteriors."""

    model: GaussianMixture
    operator: LinearOperator
    noise: float
    y: Tensor
    truth: tuple[Tensor, ...]
    floor: float

    def distance(self, x: Tensor) -> float:
        """Of draws `(6, n, 16)`, the mean over the measurements."""
        return sum(sliced(own, exact) for own, exact in zip(x, self.truth, strict=True)) / len(self.truth)

    def restored(self, method: str, nfe: int, seed: int, **how: Any) -> Tensor:
        """Draws by a method, `(6, 400, 16)`."""
        found: Tensor = restore(
            self.model, self.y, self.operator, self.noise, method=method, n=DRAWS, nfe=nfe, seed=seed, dtype=F64,
            batch_size=DRAWS, **how,
        )  # fmt: skip
        return found


@functools.cache
def cell(name: str, noise: float, seed: int) -> Cell:
    """The problem of an operator, a noise and a seed."""
    model, a = law(seed), operator(name, seed)
    y = a.measure(model.sample(MEASUREMENTS, seed=seed + 2), noise, seed=seed)
    exact = [model.posterior(a, one[None], noise) for one in y]
    truth = tuple(one.sample(DRAWS, seed=seed + 3) for one in exact)
    others = [one.sample(DRAWS, seed=seed + 4) for one in exact]
    bare = Cell(model, a, noise, y, truth, 0.0)
    return Cell(model, a, noise, y, truth, bare.distance(torch.stack(others)))


def duel(
    name: str, noise: float, nfe: int, ours: dict[str, Any], theirs: dict[str, Any]
) -> Callable[[int], tuple[float, float]]:
    """Both distances of two methods on one problem at equal evaluations."""

    def run(seed: int) -> tuple[float, float]:
        problem = cell(name, noise, seed)
        first, second = (problem.distance(problem.restored(nfe=nfe, seed=seed, **how)) for how in (ours, theirs))
        return first, second

    return run
