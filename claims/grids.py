"""Measurements that are not linear, where the posterior is known on a grid: in the plane, and counts along a line."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fewstep as fs
from claims.common import F64, VP, GaussianMixture, sliced
from fewstep.operators.jpeg import Jpeg
from fewstep.operators.noise import Gaussian, Poisson
from fewstep.operators.operator import Operator
from fewstep.restoration.calibrate import calibrate

PROBLEMS = ("magnitudes", "clipped", "JPEG of a ramp", "counts")
FINE = {1: 4001, 2: 401}  # points along each axis of a grid
MEASUREMENTS, DRAWS, COMPONENTS, SIDE = 4, 200, 4, 8
CALIBRATED_ON = 4000


def prior(model: GaussianMixture, x: Tensor) -> Tensor:
    """The log density `(N,)` of samples `(N, d)`."""
    laws = torch.distributions.MultivariateNormal(model.means.to(F64), model.covariances())
    return (laws.log_prob(x[:, None]) + model.log_weights).logsumexp(1)


@dataclass(frozen=True)
class Grid:
    """The posterior of one measurement on points `(N, d)` of a grid: `masses` `(N,)` sum to 1; step: between points."""

    points: Tensor
    masses: Tensor
    step: float

    def mean(self) -> Tensor:
        return self.masses @ self.points

    def covariance(self) -> Tensor:
        off = self.points - self.mean()
        return (self.masses[:, None] * off).mT @ off

    def draws(self, n: int, seed: int) -> Tensor:
        """Samples `(n, d)`: points by their masses, and anywhere in their cells."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.multinomial(self.masses, n, replacement=True, generator=generator)
        inside = torch.rand(n, self.points.shape[1], generator=generator, dtype=F64) - 0.5
        return self.points[chosen] + self.step * inside


def posterior(model: GaussianMixture, operator: Operator, law: Any, y: Tensor, low: float, high: float) -> Grid:
    """Of a measurement `(*measured)`, on a grid from low to high along every axis."""
    d = int(model.means.shape[1])
    axis = torch.linspace(low, high, FINE[d], dtype=F64)
    points = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
    with torch.no_grad():
        logs = [
            prior(model, part) + law.log_prob(y.expand(len(part), *y.shape), operator(part))
            for part in points.split(16_384)
        ]
    return Grid(points, torch.cat(logs).softmax(0), float(axis[1] - axis[0]))


def _ramp(x: Tensor) -> Tensor:
    """Pictures `(B, 1, 8, 8)` of a brightness and a slope `(B, 2)`, from left to right."""
    line = torch.linspace(-1, 1, SIDE, dtype=x.dtype)
    return (x[:, :1] + x[:, 1:] * line)[:, None, None, :].expand(-1, 1, SIDE, SIDE)


def measured(name: str, seed: int) -> tuple[Operator, Any]:
    """The operator of a problem and the law of its noise."""
    if name == "magnitudes":
        generator = torch.Generator().manual_seed(seed + 100)
        frame, _ = torch.linalg.qr(torch.randn(2, 2, generator=generator, dtype=F64))
        return fs.operators.Magnitude(fs.operators.Matrix(frame)).fit((2,)), Gaussian(0.1)
    if name == "clipped":
        return fs.operators.Clip(-0.5, 0.5).fit((2,)), Gaussian(0.1)
    if name == "counts":
        return fs.operators.Identity().fit((1,)), Poisson(4.0)
    jpeg = Jpeg(20)
    return fs.operators.Nonlinear(lambda x: jpeg(_ramp(x))).fit((2,)), Gaussian(0.2)


@functools.cache
def law(d: int, seed: int) -> GaussianMixture:
    """Four equal components in the plane around 0, or along a line above 0. Calibrated."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(COMPONENTS, d, generator=generator, dtype=F64) * 0.6
    std = 0.1 + 0.2 * torch.rand(COMPONENTS, 1, d, generator=generator, dtype=F64)
    covariances = torch.diag_embed(std[:, 0] ** 2)
    if d == 1:
        means = means.abs() * 2 + 0.5
    model = GaussianMixture(torch.ones(COMPONENTS), means, covariances, VP())
    calibrate(model, model.sample(CALIBRATED_ON, seed=seed + 1), n=CALIBRATED_ON)
    return model


@dataclass(frozen=True)
class Cell:
    """A law, its measurements `(4, *measured)`, and the exact posterior of each."""

    model: GaussianMixture
    operator: Operator
    noise: Any
    y: Tensor
    exact: tuple[Grid, ...]

    def restored(self, method: str, nfe: int, seed: int) -> Tensor:
        """Draws `(4, 200, d)`."""
        found: Tensor = fs.restore(
            self.model, self.y, self.operator, self.noise, method=method, n=DRAWS, nfe=nfe, seed=seed, dtype=F64,
            batch_size=MEASUREMENTS * DRAWS,
        )  # fmt: skip
        return found

    def distance(self, x: Tensor, seed: int) -> float:
        """Of draws `(4, n, d)` to as many of the exact posterior, the mean over the measurements."""
        pairs = zip(x, self.exact, strict=True)
        return sum(sliced(own, grid.draws(4 * DRAWS, seed + 3)) for own, grid in pairs) / len(self.exact)

    def mass(self, x: Tensor) -> float:
        """Of magnitudes: how far the shares of the signs of `A x` are from the exact ones, 0 to 1."""
        total = 0.0
        for own, grid in zip(x, self.exact, strict=True):
            there = _signs(self.operator, grid.points)
            exact = torch.zeros(4, dtype=F64).index_add(0, there, grid.masses)
            found = torch.bincount(_signs(self.operator, own), minlength=4) / len(own)
            total += float((found - exact).abs().sum()) / 2
        return total / len(self.exact)


def _signs(operator: Any, x: Tensor) -> Tensor:
    """Which of the four `(N,)`."""
    seen = operator.inner(x) > 0
    return seen[:, 0].long() * 2 + seen[:, 1].long()


@functools.cache
def cell(name: str, seed: int) -> Cell:
    """The problem of a name and a seed."""
    model, (operator, noise) = law(1 if name == "counts" else 2, seed), measured(name, seed)
    y = operator.measure(model.sample(MEASUREMENTS, seed=seed + 2), noise, seed=seed)
    low, high = (-1.0, 7.0) if name == "counts" else (-3.0, 3.0)
    return Cell(model, operator, noise, y, tuple(posterior(model, operator, noise, one, low, high) for one in y))
