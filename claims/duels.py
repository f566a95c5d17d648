"""The experiments that tables of claims share: two solvers, two rules, two plans, measured orders, identities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from claims.claim import Outcome, Run, compared, experiment, tolerance
from claims.common import ENDPOINT, F64, SLICED, plan, sliced
from claims.parts import VP, Process
from claims.problems import TOLERANCE, clock, distance, mixture, order, problem, stated
from fewstep.core.methods import card

USUAL = VP()  # of rows that name no process


@experiment
def duel(
    seed: int, ours: str, theirs: str, nfe: int, timesteps: str = "log-snr", where: Process | str = USUAL
) -> Outcome:
    """End point errors of two solvers. The second gets as many evaluations as the first makes of its `nfe`."""
    on = problem(where, seed)
    first = plan(on.model.process, ours, timesteps=timesteps, nfe=nfe)
    second = plan(on.model.process, theirs, timesteps=timesteps, nfe=first.nfe)
    about = f"{ours}, {first.nfe} evaluations, times {timesteps}, {on.about}"
    return Outcome(on.error(first), on.error(second), f"{theirs}, {second.nfe} evaluations", about, unit=ENDPOINT)


@experiment
def rules(seed: int, ours: str, theirs: str, solver: str, nfe: int, where: Process | str = USUAL) -> Outcome:
    """End point errors of one solver on two timestep rules, at equal evaluations."""
    on = problem(where, seed)
    first, second = (plan(on.model.process, solver, timesteps=rule, nfe=nfe) for rule in (ours, theirs))
    if first.nfe != second.nfe:
        raise ValueError(f"{solver} makes {first.nfe} evaluations on {ours} and {second.nfe} on {theirs}")
    about = f"{solver}, {first.nfe} evaluations, {on.about}"
    return Outcome(on.error(first), on.error(second), theirs, about, unit=ENDPOINT)


@experiment
def processes(seed: int, ours: Process, theirs: Process, solver: str, nfe: int, against: str) -> Outcome:
    """End point errors of a solver in equal steps under two processes, each against its own ODE."""
    errors = [problem(p, seed).error(plan(p, solver, timesteps="uniform", nfe=nfe)) for p in (ours, theirs)]
    about = f"{solver.replace('euler', 'Euler')}, {nfe} uniform steps, 8-component mixture, 256 noises"
    return Outcome(errors[0], errors[1], f"{against}, each against its own ODE", about, unit=ENDPOINT)


@experiment
def orders(seed: int, method: str, process: Process = USUAL) -> Outcome:
    """The furthest of a method's measured orders from the stated ones."""
    every = card(method, "solver")[0].facts.get("orders")
    names = [f"{method}-{p}" for p in every] if every else [method]
    measured = {name: order(process, name, seed) for name in names}
    worst = max(abs(value - stated(name)) for name, value in measured.items())
    found = ", ".join(f"{name} {value:.2f} for {stated(name)}" for name, value in measured.items())
    about = f"{found}; 96 and 192 steps, smooth 5-component mixture, {process.name}"
    return tolerance(worst, TOLERANCE, about, "|measured - stated order|")


@experiment
def stochastic_duel(
    seed: int,
    ours: str,
    theirs: str,
    nfe: int,
    timesteps: str = "log-snr",
    process: Process = USUAL,
    spread: float = 1.0,
) -> Outcome:
    """Sliced Wasserstein distances of two solvers from exact samples, beside that of exact samples from each other."""
    model, n = mixture(process), 4096
    floor = sliced(model.sample(n, seed + 2), model.sample(n, seed + 1))
    start = "" if spread == 1 else f", initial noise times {spread:g}"
    figures = [distance(process, solver, nfe, timesteps, seed, n, spread) for solver in (ours, theirs)]
    about = f"{ours}, {nfe} evaluations, times {timesteps}, 8-component mixture, {process.name}{start}, {n} samples;"
    about += f" exact samples have {floor:.2g}"
    return compared(figures, f"{theirs}, {nfe} evaluations", about, unit=SLICED)


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
    about = f"{what} {largest:.1g}, time(log_snr(t)) against t {inverse:.1g}, derivatives against autograd"
    about += f" {derivative:.1g}"
    return tolerance(max(largest, inverse, derivative), 1e-12, about)


@experiment
def formulas(
    seed: int, process: Process, what: str, error: Callable[[Any, Tensor], Tensor | Sequence[Tensor]]
) -> Outcome:
    """`identities` where the identities are differences that must vanish at all times of the clock."""
    found = error(process, clock(process))
    errors = [found] if isinstance(found, Tensor) else found
    return identities(process, max(float(each.abs().max()) for each in errors), what)


def on_circle(process: Process) -> Run:
    """`formulas` of a process that preserves the variance."""
    return formulas(process, "alpha^2 + sigma^2 against 1", lambda p, t: p.alpha(t) ** 2 + p.sigma(t) ** 2 - 1)
