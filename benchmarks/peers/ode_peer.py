"""torchdiffeq: a general ODE library's fixed-step methods on dx/dsigma = eps, in log sigma."""

from __future__ import annotations

import math

import numpy as np
import torch

from benchmarks.peers.harness import Outcome, Run, Solver
from benchmarks.peers.problems import Problem

NAME = "torchdiffeq"


def _run(method: str, evaluations: int, grid: str) -> Run:
    def run(problem: Problem, nfe: int) -> Outcome:
        from torchdiffeq import odeint

        n = nfe // evaluations
        if n < 1:
            return None
        r = problem.path.grid(grid, n)

        def slope(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return math.exp(float(t)) * problem.eps(x, 1.0, math.exp(float(t)))

        x = odeint(slope, problem.start(float(r[0]), "ve"), torch.from_numpy(np.log(r)), method=method)[-1]
        return x, float(r[-1])

    return run


def solvers(path: str, stochastic: bool) -> list[Solver]:
    if stochastic:
        return []
    return [
        Solver(NAME, method, grid, _run(method, evaluations, grid))
        for method, evaluations in (("midpoint", 2), ("rk4", 4))
        for grid in ("karras", "logsnr")
    ]
