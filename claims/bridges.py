"""The exact problem of the bridge claims: Gaussian pairs, on which the law of a run is known to the last digit."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from claims.common import ENDPOINT, F64, Noise, Outcome, Plan, compared, endpoint_error, experiment, plan
from fewstep.denoisers.gaussian_bridge import GaussianBridge
from fewstep.processes.bridge import Bridge

D = 4  # numbers of a sample


@functools.cache
def pairs(process: Bridge) -> GaussianBridge:
    """Pairs in four dimensions: covariance `G G^T / 8 + 0.05`, G normal of seed 0, means half a normal."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2 * D, 2 * D, generator=generator, dtype=F64) / math.sqrt(2 * D)
    mean = 0.5 * torch.randn(2, D, generator=generator, dtype=F64)
    return GaussianBridge(mean, root @ root.mT + 0.05 * torch.eye(2 * D, dtype=F64), process)


class Units:
    """Noise whose rows are the unit vectors of all draws: 0 is the start's; the last row has none at all."""

    def __init__(self, draws: int):
        rows = torch.eye((draws + 1) * D, dtype=F64).reshape(-1, draws + 1, D)
        self.rows = torch.cat([rows, torch.zeros(1, draws + 1, D, dtype=F64)])

    def normal(
        self,
        draw: int,
        shape: tuple[int, ...] = (),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = F64,
    ) -> Tensor:
        """The rows `(N, D)` of one draw."""
        return self.rows[:, draw]


def law(process: Bridge, made: Plan, seed: int) -> tuple[float, float]:
    """Relative errors of mean and covariance of a plan's samples given one picture, without sampling.

    A run on a linear denoiser is affine in its noise, so unit vectors of noise give its law.
    """
    model = pairs(process)
    y = model.sample(1, seed)[1]
    mean, covariance = model.posterior(y)
    units = Units(sum(len(stage.draws) for stage in made.table.stages))
    named = y.expand(len(units.rows), D)
    x = model.decode(made(model, units.normal(0), dtype=F64, source=units, y=named), y=named)
    spread = x[:-1] - x[-1]
    off = spread.mT @ spread - covariance
    return float((x[-1] - mean[0]).norm() / mean.norm()), float(off.norm() / covariance.norm())


@experiment
def law_duel(seed: int, process: Bridge, ours: str, theirs: str, nfe: int, timesteps: str) -> Outcome:
    """Errors of the covariance of x0 given y of two solvers, at equal evaluations."""
    first = plan(process, ours, timesteps=timesteps, nfe=nfe)
    second = plan(process, theirs, timesteps=timesteps, nfe=first.nfe)
    means, covariances = zip(*(law(process, made, seed) for made in (first, second)), strict=True)
    about = f"{ours}, {first.nfe} evaluations, times {timesteps}, Gaussian pairs, {process.name}; errors of the mean"
    about += f" {means[0]:.2g} and {means[1]:.2g}"
    unit = "relative error of the covariance given y"
    return compared(covariances, f"{theirs}, {second.nfe} evaluations", about, unit=unit)


@experiment
def ode_duel(seed: int, process: Bridge, ours: str, theirs: str, nfe: int, timesteps: str) -> Outcome:
    """End point errors of two deterministic solvers, at equal evaluations, against a solution with 300 steps."""
    model = pairs(process)
    y, noise = model.sample(64, seed)[1], Noise(seed).normal(0, (64, D), "cpu", F64)
    reference = plan(process, "vab-4", 300, "karras")(model, noise, dtype=F64, y=y)
    made = (plan(process, solver, timesteps=timesteps, nfe=nfe) for solver in (ours, theirs))
    errors = [endpoint_error(p(model, noise, dtype=F64, y=y), reference).value for p in made]
    about = f"{ours}, {nfe} evaluations, times {timesteps}, Gaussian pairs, {process.name}, 64 noises"
    return compared(errors, f"{theirs}, {nfe} evaluations", about, unit=ENDPOINT)


def largest(values: Sequence[Tensor]) -> float:
    """The largest absolute value in tensors of any shapes."""
    return max(float(value.abs().max()) for value in values)
