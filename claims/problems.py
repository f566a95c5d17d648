"""The problems that claims share, each with its exact (or far finer) answer, computed once a process and seed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from claims.common import F64, Denoiser, GaussianMixture, Noise, Plan, Process, endpoint_error, gap, plan, sliced
from fewstep.core import methods
from fewstep.core.trace import Trace, Value
from fewstep.sampling.common import Frame, step

NOISES = 256
MIXTURE_SEED = 0  # of the mixture's parameters; the noises follow each claim's own seed
TOLERANCE = 0.2  # of a measured order


def anisotropic(k: int, spread: float, low: float, high: float, process: Process, d: int = 2) -> GaussianMixture:
    """k equal components in d dimensions, means `spread` N(0, 1), standard deviations from `low` to `high`."""
    generator = torch.Generator().manual_seed(MIXTURE_SEED)
    means = spread * torch.randn(k, d, generator=generator, dtype=F64)
    std = low + (high - low) * torch.rand(k, d, generator=generator, dtype=F64)
    basis, _ = torch.linalg.qr(torch.randn(k, d, d, generator=generator, dtype=F64))
    return GaussianMixture(torch.ones(k), means, basis @ torch.diag_embed(std**2) @ basis.mT, process)


@functools.cache
def mixture(process: Process) -> GaussianMixture:
    """Eight narrow components: standard deviations 0.04 to 0.2, means 0.5 N(0, 1)."""
    return anisotropic(8, 0.5, 0.04, 0.2, process)


@functools.cache
def wide(process: Process) -> GaussianMixture:
    """Six components in twelve dimensions: standard deviations 0.05 to 0.4, means 0.5 N(0, 1)."""
    return anisotropic(6, 0.5, 0.05, 0.05 + 0.35, process, 12)


@functools.cache
def smooth(process: Process) -> GaussianMixture:
    """Five broad components, on which orders show."""
    return anisotropic(5, 0.8, 0.35, 0.6, process)


@dataclass(frozen=True)
class Problem:
    """A denoiser, noises `(n, *shape)`, their conditions, and the end points of the probability-flow ODE."""

    name: str
    model: Denoiser
    noise: Tensor
    reference: Tensor
    condition: dict[str, Tensor]

    def error(self, made: Plan) -> float:
        """The plan's relative end point error; infinite where it diverges."""
        try:
            return endpoint_error(self.run(made), self.reference).value
        except ValueError as error:
            if "not finite" in str(error):
                return math.inf
            raise

    def run(self, made: Callable[..., Tensor], model: Denoiser | None = None, **options: Any) -> Tensor:
        """The plan's samples from the noises, of the problem's model or of another one."""
        return made(model or self.model, self.noise, dtype=self.noise.dtype, **self.condition, **options)

    @property
    def about(self) -> str:
        return f"{self.name}, {len(self.noise)} noises"

    def part(self, n: int) -> Problem:
        """The first n noises."""
        condition = {name: value[:n] for name, value in self.condition.items()}
        return Problem(self.name, self.model, self.noise[:n], self.reference[:n], condition)


def fine(process: Process) -> Plan:
    """The reference: vab-4 with 400 steps on karras times, within 1e-5 of the end point on the mixture."""
    return plan(process, "vab-4", 400, "karras")


@functools.cache
def exact(process: Process, seed: int, n: int = NOISES) -> Problem:
    """The eight-component mixture under a process, in float64."""
    return _solved(f"8-component mixture, {process.name}", mixture(process), seed, n)


@functools.cache
def exact_wide(process: Process, seed: int, n: int = NOISES) -> Problem:
    """The mixture in twelve dimensions under a process, in float64."""
    return _solved(f"mixture in 12 dimensions, {process.name}", wide(process), seed, n)


def _solved(name: str, model: GaussianMixture, seed: int, n: int) -> Problem:
    noise = Noise(seed).normal(0, (n, *(model.shape or ())), "cpu", F64)
    return Problem(name, model, noise, fine(model.process)(model, noise, dtype=F64), {})


@functools.cache
def digits(seed: int, n: int = 64) -> Problem:
    """The embedded model, classes in turn; the reference is vab-3 with 100 evaluations on karras times."""
    from fewstep.hub.models import load

    model = load("digits")
    noise = Noise(seed).normal(0, (n, 1, 8, 8))
    condition = {"label": torch.arange(n) % 10}
    made = plan(model.process, "vab-3", timesteps="karras", nfe=100)
    return Problem("embedded digits", model, noise, made(model, noise, **condition), condition)


def problem(where: Process | str, seed: int, n: int | None = None) -> Problem:
    """Where a claim is measured: the mixture under a process, or the embedded "digits"; on the first n noises."""
    whole = digits(seed) if isinstance(where, str) else exact(where, seed)
    return whole if n is None else whole.part(n)


def spread_grid(process: Process, n: int) -> list[float]:
    """n equal steps in log-SNR, from sigma / alpha = 3 to 0.1: the range in which orders are measured."""
    low, high = -math.log(3), -math.log(0.1)
    return [process.time(float(value)) for value in np.linspace(low, high, n + 1)]


@functools.cache
def _smooth_answer(process: Process, seed: int) -> tuple[Tensor, Tensor]:
    noise = Noise(seed).normal(0, (32, 2), "cpu", F64)
    return noise, plan(process, "ab-5", timesteps=spread_grid(process, 800))(smooth(process), noise, dtype=F64)


def order(process: Process, solver: str | Callable[..., Value], seed: int, steps: int = 96) -> float:
    """The measured order of a solver: log2 of the error at `steps` over that at twice as many."""
    noise, answer = _smooth_answer(process, seed)
    errors = []
    for n in (steps, 2 * steps):
        x = plan(process, solver, timesteps=spread_grid(process, n))(smooth(process), noise, dtype=F64)
        errors.append(gap(x, answer))
    return math.log2(errors[0] / errors[1])


def stated(name: str) -> int:
    """The order that a solver's card states; `name` may carry p (`unipc-3`)."""
    found = methods.order(*methods.card(name, "solver"))
    assert found is not None
    return found


def first_order_start(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """The third-order multistep solver whose orders rise by one a step, with nothing corrected: the usual warm-up."""
    x, points = trace.start(), []
    for a, b in pairwise(times):
        points.append((a, trace.evaluate(x, a)))
        x = step(process, Frame("x0", "log_snr"), x, a, b, points[-3:])
    return x


def distance(process: Process, solver: str, nfe: int, timesteps: str, seed: int, n: int, spread: float) -> float:
    """Sliced Wasserstein distance of n samples from n exact ones; `spread` multiplies the initial noise."""
    model = mixture(process)
    noise = spread * Noise(seed).normal(0, (n, 2), "cpu", F64)
    made = plan(process, solver, timesteps=timesteps, nfe=nfe)
    samples = made(model, noise, seed=seed, dtype=F64)
    return sliced(samples, model.sample(n, seed + 1))


def clock(process: Process, points: int = 201) -> Tensor:
    """Times over the whole clock, float64."""
    return torch.linspace(process.t_min, process.t_max, points, dtype=F64)
