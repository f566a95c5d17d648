"""fewstep as a solver collection of the peers' accuracy harness.

The harness (problems, peers and scoring) is a benchmark of its own; its `adapter_fewstep.py` is this file. It gives the
deterministic solvers on six timestep rules and both ends, in float64, each on the process of the problem's path.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import peers
import problems
import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import card, find
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction, coefficients
from fewstep.core.process import Process
from fewstep.core.trace import record
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan, solver_names
from fewstep.timesteps.grid import make_times

NAME = "fewstep"
RULES = ("log-snr", "karras", "uniform", "quadratic", "short", "polyexponential")
COSINE_START = -5.1  # the log-SNR at which the harness starts the cosine table


@functools.cache
def process_of(path: str) -> Process:
    if path in ("vp_linear", "cosine"):
        ratio = problems.ddpm_sigmas(path)
        return Discrete(tuple((1 / (1 + ratio**2)).tolist()))
    return {"vp_cont": VP(t_min=1e-4), "edm": EDM(), "rf": Flow()}[path]


class Cut(Discrete):
    """A table whose clock begins at `COSINE_START`."""

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.time(COSINE_START)


class Exact(Denoiser):
    """The harness's network, counted, in the kind a plan asks for."""

    def __init__(self, problem: Any, process: Process, kind: str):
        super().__init__()
        self.problem, self.process, self.kind = problem, process, kind

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        self.problem.nfe += 1
        time = float(t)
        alpha, sigma = self.process.alpha(time), self.process.sigma(time)
        x0, eps = self.problem.target.both(x.double(), alpha, sigma)
        a, b = coefficients(self.kind, alpha, sigma, self.process.dalpha(time), self.process.dsigma(time))
        return Prediction(a * x0 + b * eps, self.kind, x, t, self.process)


@functools.cache
def make(path: str, solver: str, rule: str, nfe: int, end: str) -> Plan | None:
    """The plan with the most steps within the budget, or None."""
    process = process_of(path)
    if path != "cosine":
        try:
            return plan(process, solver, timesteps=rule, nfe=nfe, end=end)
        except ValueError:
            return None
    for steps in range(nfe + 1, 0, -1):
        try:
            times = make_times(Cut(process.alphas_cumprod), steps, rule, end)  # type: ignore[attr-defined]
            made = record(find(solver, "sampling"), process, times, {}, {"solver": solver})
        except ValueError:
            continue
        if made.nfe <= nfe:
            return made
    return None


def _case(path: str, solver: str, rule: str, end: str) -> Callable[[Any, int], Any]:
    def run(problem: Any, nfe: int) -> Any:
        made = make(path, solver, rule, nfe, end)
        if made is None or made.nfe < nfe - 2:
            return None
        process = process_of(path)
        kind = made.evaluations[-1].outputs[0][0]
        alpha, sigma = made.start
        if kind == "velocity" or alpha == 0:  # eps says nothing about x0 at alpha = 0
            kind = "x0"
        scaling = "ve" if path == "edm" else "rf" if path == "rf" else "vp"
        x = problem.start(math.inf if alpha == 0 else sigma / alpha, scaling)
        x = made(Exact(problem, process, kind), x / sigma, dtype=torch.float64)
        last = made.times[-1]
        return x / process.alpha(last), process.sigma(last) / process.alpha(last)

    return run


def accuracy_solvers(path: Any, stochastic: bool = False) -> list[Any]:
    found: list[Any] = []
    if stochastic:
        return found
    name = getattr(path, "name", path)
    for solver in solver_names():
        method, order = card(solver, "sampling")
        if method.facts.get("stochastic") or order == 1:  # every first-order solver is DDIM
            continue
        for rule in RULES:
            for end, mark in (("zero", "+0"), ("min", "")):
                found.append(peers.Solver(NAME, solver, rule + mark, _case(name, solver, rule, end)))
    return found


def core_solvers() -> list[Any]:
    return []


def core_drift_solvers() -> list[Any]:
    return []


def overhead_cases() -> list[Any]:
    return []


def import_statements() -> list[Any]:
    return []


def throughput_case() -> list[Any]:
    return []


def training_case() -> list[Any]:
    return []
