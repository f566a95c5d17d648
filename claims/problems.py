"""The problems that claims share, each with its exact (or far finer) answer, computed once a process and seed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from claims.claim import Outcome
from fewstep.core import methods
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.metrics.endpoint import endpoint_error
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.sampling.build import plan
from fewstep.sampling.common import Frame, step

F64 = torch.float64
NOISES = 256
MIXTURE_SEED = 0  # of the mixture's parameters; the noises follow each claim's own seed
TOLERANCE = 0.2  # of a measured order


def anisotropic(k: int, spread: float, low: float, high: float, process: Process) -> GaussianMixture:
    """k equal components in the plane, means `spread` N(0, 1), standard deviations from `low` to `high`."""
    generator = torch.Generator().manual_seed(MIXTURE_SEED)
    means = spread * torch.randn(k, 2, generator=generator, dtype=F64)
    std = low + (high - low) * torch.rand(k, 2, generator=generator, dtype=F64)
    basis, _ = torch.linalg.qr(torch.randn(k, 2, 2, generator=generator, dtype=F64))
    covariances = basis @ torch.diag_embed(std**2) @ basis.mT
    return GaussianMixture(torch.ones(k), means, covariances, process)


@functools.cache
def mixture(process: Process) -> GaussianMixture:
    """Eight narrow components: standard deviations 0.04 to 0.2, means 0.5 N(0, 1)."""
    return anisotropic(8, 0.5, 0.04, 0.2, process)


@functools.cache
def wide(process: Process) -> GaussianMixture:
    """Six components in twelve dimensions: standard deviations 0.05 to 0.4, means 0.5 N(0, 1)."""
    generator = torch.Generator().manual_seed(MIXTURE_SEED)
    k, d = 6, 12
    means = 0.5 * torch.randn(k, d, generator=generator, dtype=F64)
    std = 0.05 + 0.35 * torch.rand(k, d, generator=generator, dtype=F64)
    basis, _ = torch.linalg.qr(torch.randn(k, d, d, generator=generator, dtype=F64))
    return GaussianMixture(torch.ones(k), means, basis @ torch.diag_embed(std**2) @ basis.mT, process)


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
            x = made(self.model, self.noise, dtype=self.noise.dtype, **self.condition)
        except ValueError as error:
            if "not finite" in str(error):
                return math.inf
            raise
        return endpoint_error(x, self.reference).value

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


def duel(
    problem: Problem,
    ours: str,
    theirs: str,
    nfe: int,
    timesteps: str,
    their_timesteps: str | None = None,
) -> Outcome:
    """End point errors of two solvers. The second gets as many evaluations as the first makes of its `nfe`."""
    process = problem.model.process
    first = plan(process, ours, timesteps=timesteps, nfe=nfe)
    second = plan(process, theirs, timesteps=their_timesteps or timesteps, nfe=first.nfe)
    rules = timesteps if their_timesteps is None else f"{timesteps} and {their_timesteps}"
    mark = f"{theirs}, {their_timesteps}" if their_timesteps else theirs
    return Outcome(
        problem.error(first),
        problem.error(second),
        f"{mark}, {second.nfe} evaluations",
        f"{ours}, {first.nfe} evaluations, times {rules}, {problem.name}, {len(problem.noise)} noises",
        unit="relative end point error",
    )


def rules(problem: Problem, ours: str, theirs: str, solver: str, nfe: int) -> Outcome:
    """End point errors of one solver on two timestep rules, at equal evaluations."""
    first, second = (plan(problem.model.process, solver, timesteps=rule, nfe=nfe) for rule in (ours, theirs))
    if first.nfe != second.nfe:
        raise ValueError(f"{solver} makes {first.nfe} evaluations on {ours} and {second.nfe} on {theirs}")
    return Outcome(
        problem.error(first),
        problem.error(second),
        theirs,
        f"{solver}, {first.nfe} evaluations, {problem.name}, {len(problem.noise)} noises",
        unit="relative end point error",
    )


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
        errors.append(float((x - answer).norm() / answer.norm()))
    return math.log2(errors[0] / errors[1])


def stated(name: str) -> int:
    """The order that a solver's card states; `name` may carry p (`unipc-3`)."""
    stated = methods.order(*methods.card(name, "solver"))
    assert stated is not None
    return stated


def orders(process: Process, method: str, seed: int) -> Outcome:
    """The furthest of a method's measured orders from the stated ones."""
    every = methods.card(method, "solver")[0].facts.get("orders")
    names = [f"{method}-{p}" for p in every] if every else [method]
    measured = {name: order(process, name, seed) for name in names}
    found = ", ".join(f"{name} {value:.2f} for {stated(name)}" for name, value in measured.items())
    return Outcome(
        max(abs(value - stated(name)) for name, value in measured.items()),
        TOLERANCE,
        "tolerance",
        f"{found}; 96 and 192 steps, smooth 5-component mixture, {process.name}",
        unit="|measured - stated order|",
    )


def first_order_start(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """The third-order multistep solver whose orders rise by one a step, with nothing corrected: the usual warm-up."""
    x, points = trace.start(), []
    for a, b in pairwise(times):
        points.append((a, trace.evaluate(x, a)))
        x = step(process, Frame("x0", "log_snr"), x, a, b, points[-3:])
    return x


def distance(
    process: Process, solver: str, nfe: int, timesteps: str, seed: int, n: int = 4096, spread: float = 1.0
) -> float:
    """Sliced Wasserstein distance of n samples from n exact ones; `spread` multiplies the initial noise."""
    model = mixture(process)
    noise = spread * Noise(seed).normal(0, (n, 2), "cpu", F64)
    made = plan(process, solver, timesteps=timesteps, nfe=nfe)
    samples = made(model, noise, seed=seed, dtype=F64)
    return sliced_wasserstein(samples, model.sample(n, seed + 1), projections=64).value


def stochastic_duel(
    process: Process, ours: str, theirs: str, nfe: int, timesteps: str, seed: int, spread: float = 1.0
) -> Outcome:
    """Sliced Wasserstein distances of two solvers from exact samples, beside that of exact samples from each other."""
    model, n = mixture(process), 4096
    floor = sliced_wasserstein(model.sample(n, seed + 2), model.sample(n, seed + 1), projections=64).value
    start = "" if spread == 1 else f", initial noise times {spread:g}"
    return Outcome(
        distance(process, ours, nfe, timesteps, seed, n, spread),
        distance(process, theirs, nfe, timesteps, seed, n, spread),
        f"{theirs}, {nfe} evaluations",
        f"{ours}, {nfe} evaluations, times {timesteps}, 8-component mixture, {process.name}{start}, {n} samples;"
        f" exact samples have {floor:.2g}",
        unit="sliced Wasserstein distance",
    )


def inverse_error(process: Process, points: int = 201) -> float:
    """Largest |time(log_snr(t)) - t| over the clock, in parts of its length; ends with infinite log-SNR left out."""
    t = torch.linspace(process.t_min, process.t_max, points, dtype=F64)
    log_snr = process.log_snr(t)
    kept = torch.isfinite(log_snr)
    back = process.time(log_snr[kept])
    return float((back - t[kept]).abs().max() / (process.t_max - process.t_min))


def derivative_error(process: Process, points: int = 201) -> float:
    """Largest difference of dalpha and dsigma from autograd's derivatives, relative to the derivatives' own largest."""
    inner = torch.linspace(process.t_min, process.t_max, points + 2, dtype=F64)[1:-1] + 1e-7  # off a table's steps
    worst = 0.0
    for value, derivative in ((process.alpha, process.dalpha), (process.sigma, process.dsigma)):
        t = inner.clone().requires_grad_(True)
        out = value(t).sum()
        wanted = torch.autograd.grad(out, t)[0] if out.requires_grad else torch.zeros_like(t)
        scale = float(wanted.abs().max()) or 1.0
        worst = max(worst, float((derivative(inner) - wanted).abs().max()) / scale)
    return worst


def identities(process: Process, largest: float, what: str) -> Outcome:
    """The worst of an identity's error, the inverse's and the derivatives', against 1e-12."""
    inverse, derivative = inverse_error(process), derivative_error(process)
    return Outcome(
        max(largest, inverse, derivative),
        1e-12,
        "tolerance",
        f"{what} {largest:.1g}, time(log_snr(t)) against t {inverse:.1g},"
        f" derivatives against autograd {derivative:.1g}",
        unit="largest error",
    )


def clock(process: Process, points: int = 201) -> Tensor:
    """Times over the whole clock, float64."""
    return torch.linspace(process.t_min, process.t_max, points, dtype=F64)
