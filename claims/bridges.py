"""What claims about bridges share: Gaussian pairs, whose law is known exactly, and two densities in the plane."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from claims.claim import Outcome, compared, experiment
from claims.common import ENDPOINT, F64, SLICED, endpoint_error, plan, sliced
from claims.parts import Flow, GaussianMixture, Noise, Plan
from claims.trained import MLP, fit
from fewstep.denoisers.gaussian_bridge import GaussianBridge
from fewstep.denoisers.interpolant import InterpolantNetwork, MixtureInterpolant, drawn_from
from fewstep.processes.bridge import Bridge
from fewstep.processes.interpolants import Interpolant

D = 4  # numbers of a sample
_MEANS, _VARIANCES = torch.tensor([[1.0, 1], [-1, 0.5], [0, -1.2]]), torch.tensor([0.03, 0.06, 0.04])
DATA = GaussianMixture(torch.tensor([1.0, 2, 1]), _MEANS, _VARIANCES, Flow())
OTHER = GaussianMixture(torch.ones(2), torch.tensor([[1.5, 0], [-1.5, 0.3]]), torch.tensor([0.2, 0.1]), Flow())


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

    def normal(self, draw: int, shape: Any = (), device: Any = "cpu", dtype: Any = F64) -> Tensor:
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


@functools.cache
def between(path: str = "linear", latent: str = "zero") -> MixtureInterpolant:
    """The exact interpolant of independent pairs."""
    return MixtureInterpolant.independent(DATA, OTHER, Interpolant(path=path, latent=latent))


@functools.cache
def ends(seed: int, n: int = 256) -> tuple[Tensor, Tensor]:
    """Samples x1 and where the ODE of the straight line takes them: vab-4, 400 even steps."""
    x1, exact = OTHER.sample(n, seed), between()
    return x1, plan(exact.process, "vab-4", 400, "uniform")(exact, x1, dtype=F64)


def distance(samples: Tensor, seed: int) -> float:
    """Sliced Wasserstein distance from as many exact samples of the data."""
    return sliced(samples, DATA.sample(len(samples), seed + 1000))


@experiment
def law_between(seed: int, path: str, latent: str, solver: str, steps: int, about: str, **options: float) -> Outcome:
    """How far a solver's samples are from the data, beside exact samples, with the exact fields."""
    model, n = between(path, latent), 2048
    floor = max(distance(DATA.sample(n, seed + i), seed) for i in range(1, 6))
    made = plan(model.process, solver, steps, "uniform", **options)
    ours = distance(made(model, OTHER.sample(n, seed + 9), seed=seed, dtype=F64), seed)
    against = "1.5 times the most of five sets of exact samples"
    return Outcome(ours, 1.5 * floor, against, about, unit=SLICED)


@functools.cache
def learned(seed: int, steps: int, latent: str = "brownian", predicts: str = "both") -> InterpolantNetwork:
    """A small perceptron trained on 4096 samples of each density, 256 pairs a step."""
    torch.manual_seed(seed)
    network = MLP(width=48, depth=2, out=2 if predicts == "both" else 1)
    model = InterpolantNetwork(network, Interpolant(latent=latent), predicts, shape=(2,))
    coupling = drawn_from(OTHER.sample(4096, seed + 1).float())
    made = fit(model, DATA.sample(4096, seed).float(), steps=steps, batch=256, lr=2e-3, coupling=coupling, seed=seed)
    assert isinstance(made, InterpolantNetwork)
    return made
