"""fewstep as one of the libraries compared: in float64, on its own rules, each path as the process it is."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.overhead import SOLVERS, Null
from benchmarks.peers.harness import Build, Loop, Outcome, Run, Solver
from benchmarks.peers.problems import COSINE_START, Problem, table_ratios
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import card
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction, coefficients
from fewstep.core.process import Process
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.auto import SDE
from fewstep.sampling.build import plan, solver_names
from fewstep.sampling.sample import choose_plan
from fewstep.searching.candidates import _QUIET, _tried
from fewstep.timesteps.grid import make_times

NAME = "fewstep"
AUTO = "auto"  # no solver named: what everybody gets
RULES = ("log-snr", "karras", "quadratic", "short", "uniform", "admissible")
STOCHASTIC_RULES = ("log-snr", "karras")
ENDS = {"+0": "zero", "": "min"}


class Cut(Discrete):
    """A table whose clock begins at `COSINE_START`, as the other libraries' grids do on the cosine table."""

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.time(-COSINE_START)


@functools.cache
def process_of(path: str, cut: bool = False) -> Process:
    if path in ("vp_linear", "cosine"):
        return (Cut if cut else Discrete)(tuple((1 / (1 + table_ratios(path) ** 2)).tolist()))
    return {"vp_cont": VP(t_min=1e-4), "edm": EDM(), "rf": Flow()}[path]


class Exact(Denoiser):
    """The problem's network in the kind a plan asks for."""

    def __init__(self, problem: Problem, process: Process, kind: str):
        super().__init__()
        self.problem, self.process, self.kind = problem, process, kind

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        time = float(t)
        alpha, sigma = self.process.alpha(time), self.process.sigma(time)
        x0, eps = self.problem.both(x, alpha, sigma)
        a, b = coefficients(self.kind, alpha, sigma, self.process.dalpha(time), self.process.dsigma(time))
        return Prediction(a * x0 + b * eps, self.kind, x, t, self.process)


def _rule(path: str, name: str) -> str | Callable[..., list[float]]:
    """The rule's name; for the cosine table a function that lays it over the cut clock."""
    if path != "cosine":
        return name
    return lambda process, steps, end: make_times(process_of(path, cut=True), steps, name, end)


@functools.cache
def _plan(path: str, solver: str, rule: str, nfe: int, end: str, options: tuple[tuple[str, Any], ...]) -> Plan | None:
    """The plan with the most steps within the budget; None where there is none, or none that comes near it."""
    try:
        made = plan(process_of(path), solver, timesteps=_rule(path, rule), nfe=nfe, end=end, **dict(options))
    except ValueError:
        return None
    return made if made.nfe >= nfe - 2 else None


def _run(path: str, solver: str, rule: str, end: str, **options: float) -> Run:
    def run(problem: Problem, nfe: int) -> Outcome:
        made = _plan(path, solver, rule, nfe, end, tuple(options.items()))
        if made is None:
            return None
        process = process_of(path)
        alpha, sigma = made.start
        kind = made.evaluations[-1].outputs[0][0] if made.evaluations else "x0"
        if kind == "velocity" or alpha == 0:  # eps says nothing about x0 at alpha = 0
            kind = "x0"
        x = problem.start(math.inf if alpha == 0 else sigma / alpha, problem.path.scaling)
        x = made(Exact(problem, process, kind), x / sigma, dtype=torch.float64, seed=1)
        last = made.times[-1]
        return x / process.alpha(last), process.sigma(last) / process.alpha(last)

    return run


def _automatic(path: str, solver: str) -> Run:
    """What `fs.sample` takes where nothing is named, or no more than that noise is wanted."""

    def run(problem: Problem, nfe: int) -> Outcome:
        process = process_of(path)
        model = Exact(problem, process, "x0")
        model.shape = (problem.target.size,)
        made = choose_plan(model, nfe=nfe, solver=solver)
        alpha, sigma = made.start
        x = problem.start(math.inf if alpha == 0 else sigma / alpha, problem.path.scaling)
        return made(model, x / sigma, dtype=torch.float64, seed=1), 0.0

    return run


def solvers(path: str, stochastic: bool) -> list[Solver]:
    """Those that the search tries, without noise; or every stochastic one, the live ones included."""
    cases: list[tuple[str, dict[str, float]]] = []
    for name in solver_names() + solver_names(live=True) if stochastic else _tried():
        noisy, options = card(name, "sampling")[0].facts.get("stochastic", False), _QUIET.get(name, {})
        if stochastic and noisy:
            cases.append((name, {}))
        elif not stochastic and (options or not noisy):
            cases.append((name, options))
    auto = SDE if stochastic else AUTO
    nothing_named = [Solver(NAME, auto, "its own", _automatic(path, auto))]
    return nothing_named + [
        Solver(
            NAME,
            " ".join([name, *(f"{key}={value:g}" for key, value in options.items())]),
            rule + mark,
            _run(path, name, rule, end, **options),
        )
        for name, options in cases
        for rule in (STOCHASTIC_RULES if stochastic else RULES)
        for mark, end in ENDS.items()
    ]


def _case(solver: str, anew: bool = False) -> Build:
    """The loop of a plan made beforehand, or `anew` in every run."""

    def build(shape: tuple[int, ...], steps: int) -> tuple[Loop, int]:
        process = Discrete.linear()
        made = plan(process, solver, steps=steps)
        model, noise = Null(process, torch.randn(shape) * 0.1, "eps"), torch.randn(shape)
        if anew:
            return lambda: plan(process, solver, steps=steps)(model, noise), made.nfe
        return lambda: made(model, noise), made.nfe

    return build


def overhead_cases() -> dict[str, Build]:
    made = {name: _case(name) for name in SOLVERS}
    return made | {f"{name}, planned anew": _case(name, anew=True) for name in ("dpmpp-2m", "dpmpp-3m")}
