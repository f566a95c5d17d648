"""GITS: the grid of least accumulated one-step error along the teacher's path, by dynamic programming."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.searching.grids import fine_grid, offer_in_turn, on_grid, solver_steps
from fewstep.searching.job import Job

METHODS = (
    Method(
        "gits",
        paper="On the Trajectory Regularity of ODE-based Diffusion Sampling (Chen et al., 2024)",
        arxiv="2405.11326",
        claim="times by dynamic programming on the errors of single Euler steps from a teacher's path",
        use="gits",
        facts={"quick": {"points": 21}},
    ),
)


def euler_costs(process: Process, times: list[float], states: list[Tensor], answers: list[Tensor]) -> np.ndarray:
    """`(N, N)` float64: entry (i, j), i < j, is the mean distance from the teacher's state at `times[j]` of one Euler
    (DDIM) step from its state at `times[i]`; infinite elsewhere.

    `states` are N tensors `(n, *shape)`, `answers` the x0 predicted at all of them but the last.
    """
    n = len(times)
    alpha = torch.tensor([process.alpha(t) for t in times], dtype=torch.float64)
    sigma = torch.tensor([process.sigma(t) for t in times], dtype=torch.float64)
    path = torch.stack(states).double().flatten(2)  # (N, n, D)
    alpha, sigma = alpha.to(path.device), sigma.to(path.device)
    costs = np.full((n, n), np.inf)
    for i in range(n - 1):
        carry = (sigma[i + 1 :] / sigma[i]).reshape(-1, 1, 1)
        pull = alpha[i + 1 :].reshape(-1, 1, 1) - carry * alpha[i]
        step = carry * path[i] + pull * answers[i].double().flatten(1)
        costs[i, i + 1 :] = (step - path[i + 1 :]).norm(dim=2).mean(1).cpu().numpy()
    return costs


def start_costs(process: Process, times: list[float], states: list[Tensor]) -> np.ndarray:
    """`(N,)` float64: the mean distance from the teacher's state at `times[j]` of the initial noise scaled to there.

    That is an Euler step from the noise with x0 taken for 0, which needs no evaluation: the paper's analytical first
    step. Infinite at the last time, where nothing would be left to evaluate.
    """
    noise = states[0].double().flatten(1) / process.sigma(times[0])
    costs = [
        float((noise * process.sigma(t) - x.double().flatten(1)).norm(dim=1).mean())
        for t, x in zip(times[:-1], states[:-1], strict=True)
    ]
    return np.array([*costs, np.inf])


def best_path(costs: np.ndarray, steps: int, factor: float = 1.0, start: np.ndarray | None = None) -> list[int]:
    """The `steps + 1` rising indices from the first to the last of least cost.

    The cost of a path is `sum_m factor^m costs[i_m, i_{m + 1}]`, m = 0 ... steps - 1. With `start`, the first index is
    free: it costs `start[i_0]`, and the steps' factors begin at 1, not 0.

    Raises:
        ValueError: more steps than there are points to step on, or none.
    """
    n = len(costs)
    if not 1 <= steps < n:
        raise ValueError(f"{n} points hold between 1 and {n - 1} steps, not {steps}")
    left = np.full(n, np.inf)  # cost to go from each point with so many steps left
    left[-1] = 0.0
    choices = []
    for _ in range(steps):
        total = costs + factor * left
        choices.append(total.argmin(1))
        left = total.min(1)
    path = [0 if start is None else int((start + factor * left).argmin())]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return path


def gits(job: Job, solver: str | None = None, points: int = 61, factor: float = 1.15, trajectories: int = 64) -> None:
    """Grids with the least accumulated error of single Euler steps (Chen et al., 2024, Algorithm 1).

    The cost of a step is measured from the teacher's state, so it leaves out what earlier steps have done to the
    state. `factor` stands for that: a step's cost counts `factor` times that of the step before it. Above 1 it asks for
    shorter steps near the data, where nothing comes after that would wash their errors out; below 1 near the noise; at
    1 the sum of the costs counts. The paper's code has 1.15.

    Every grid is offered from the first time, and with the analytical first step, which saves an evaluation.

    Args:
        solver: the one that runs on the grid; by default all of SOLVERS in turn.
        points: times of the fine grid, from which the grid is chosen.
        trajectories: how many of the training noises are averaged over, at most.
    """
    process = job.process
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"the factor of accumulated error must be positive, got {factor}")
    steps = solver_steps(process, job.nfe, solver)
    if points <= max(steps.values()):
        raise ValueError(f"{points} points hold at most {points - 1} steps, and {max(steps.values())} are wanted")
    state = job.state
    if state is None:
        times = fine_grid(process, points)
        states, answers = job.paths(times, trajectories)
        costs, free = euler_costs(process, times, states, answers), start_costs(process, times, states)
        grids = {}
        for n in sorted(set(steps.values())):
            paths = [best_path(costs, n, factor), best_path(costs, n, factor, free)]
            grids[str(n)] = [[times[i] for i in path] for path in paths]
        state = {"grids": grids, "tried": 0}
        job.save(state)
    plans = [
        on_grid(process, name, times, rule)
        for name, n in steps.items()
        for times, rule in zip(state["grids"][str(n)], ("gits", "gits, analytical first step"), strict=True)
    ]
    offer_in_turn(job, plans, state)
