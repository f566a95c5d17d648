"""AYS: the grid that minimises a bound on the divergence between the reverse SDE and its discretisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.core.process import Process
from fewstep.searching.grids import offer_in_turn, on_grid, solver_steps
from fewstep.searching.job import Job
from fewstep.timesteps.grid import make_times

METHODS = (
    Method(
        "ays",
        paper="Align Your Steps: Optimizing Sampling Schedules in Diffusion Models (Sabour et al., 2024)",
        arxiv="2404.14507",
        claim="times that minimise a KL bound between the reverse SDE and its steps, estimated on noised samples",
        use="ays",
        facts={"quick": {"rungs": 40, "samples": 32}},
    ),
)

RULES = ("log-snr", "karras", "uniform")  # the schedules that are optimised
START_STEPS = 10
CANDIDATES = 11  # places tried for each time, between its neighbours
FLOORS = (0.0, 0.05, 0.1, 0.2)  # noise levels before the last step, in parts of the data's standard deviation


def ladder(process: Process, rungs: int, data_std: float) -> np.ndarray:
    """`rungs` noise levels `sigma / alpha`, rising, from `t_min` to the first time, at which the bound is estimated.

    For Gaussian data of standard deviation c a short step's share of the bound is `(c^2 / (c^2 + s^2))^2` times the
    square of its length in log s, so the best times have the density `c^2 / (c^2 + s^2)` in log s. The rungs have its
    square root, half-way to equal steps, `s = c / sinh(u)` on equal steps in u, so that other data find theirs. (The
    paper draws noise levels at random from a law that evens out a Gaussian's shares; fixed rungs vary less, and every
    two of them make a step.) A start without signal begins at 160 c.
    """
    low = math.exp(-process.log_snr(process.t_min))
    high = min(math.exp(-process.log_snr(process.t_max)), 160 * data_std)
    u = np.linspace(math.asinh(data_std / low), math.asinh(data_std / high), rungs)
    levels = data_std / np.sinh(u)
    levels[0], levels[-1] = low, high
    return levels


def changes(
    model: Denoiser, data: Tensor, levels: Sequence[float], condition: dict[str, Tensor], seed: int, first: int
) -> np.ndarray:
    """`(M, M)`: the mean squared distance of the denoiser's answers at each two of the rising noise levels.

    The states of one sample at all levels lie on one path of the forward process, so each pair has the joint law of the
    SDE: `y(s') = y(s) + sqrt(s'^2 - s^2) n` with `y = x / alpha`. Every state is evaluated once.
    """
    process = model.process
    source, answers = Noise(seed, first), []
    shape, variance, y = tuple(data.shape), 0.0, data.clone()
    for k, level in enumerate(levels):
        step = math.sqrt(max(level**2 - variance, 0.0))
        y = y + step * source.normal(k + 1, shape, data.device, data.dtype)
        variance = level**2
        t = process.time(-math.log(level))
        time = torch.tensor(t, dtype=data.dtype, device=data.device)
        parts = []
        for begin in range(0, len(y), 256):
            named = {name: value[begin : begin + 256] for name, value in condition.items()}
            parts.append(model(process.alpha(t) * y[begin : begin + 256], time, **named).x0)
        answers.append(torch.cat(parts).double().flatten())
    table = torch.stack(answers)
    square = table.square().sum(1)
    distances = square[:, None] + square[None, :] - 2 * table @ table.T
    return (distances.clamp_min(0) / len(data)).cpu().numpy()


def step_bounds(levels: np.ndarray, squared: np.ndarray) -> np.ndarray:
    """`(M, M)`: entry (i, j), j < i, is the bound's share of a step from level i down to level j; infinite elsewhere.

    A step holds the denoiser at its beginning, so its share is (Sabour et al., eq. 8 and 9)

        KL_ij = integral from s_j to s_i of E |D(y_s, s) - D(y_{s_i}, s_i)|^2 / s^3 ds,

    here by the trapezium rule in `1 / (2 s^2)`, whose differential is the measure.
    """
    m = len(levels)
    measure = 0.5 / levels**2
    bounds = np.full((m, m), np.inf)
    for i in range(1, m):
        pieces = 0.5 * (squared[i, 1 : i + 1] + squared[i, :i]) * (measure[:i] - measure[1 : i + 1])
        bounds[i, :i] = np.cumsum(pieces[::-1])[::-1]
    return bounds


def total(bounds: np.ndarray, path: Sequence[int]) -> float:
    """The bound of a whole path of falling rungs."""
    return float(sum(bounds[i, j] for i, j in zip(path, path[1:], strict=False)))


def refine(bounds: np.ndarray, path: Sequence[int]) -> list[int]:
    """Zeroth-order descent: each time in turn goes to the best of CANDIDATES places between its neighbours, until
    nothing moves. Both ends stay."""
    path, moved = list(path), True
    while moved:
        moved = False
        for k in range(1, len(path) - 1):
            above, below = path[k - 1], path[k + 1]
            places = np.unique(np.round(np.linspace(above - 1, below + 1, CANDIDATES)).astype(int))
            costs = bounds[above, places] + bounds[places, below]
            if costs.min() < bounds[above, path[k]] + bounds[path[k], below]:
                path[k], moved = int(places[costs.argmin()]), True
    return path


def _rungs(wanted: Sequence[float], last: int) -> list[int]:
    """The rungs nearest to falling places on the ladder, all different, between the last rung and the first."""
    path = [last, *(round(place) for place in wanted), 0]
    for k in range(1, len(path) - 1):
        path[k] = min(path[k], path[k - 1] - 1)
    for k in range(len(path) - 2, 0, -1):
        path[k] = max(path[k], path[k + 1] + 1)
    return path


def _spread(path: Sequence[int], steps: int) -> list[int]:
    """A path's rungs at `steps` equal parts of its length, linearly between them."""
    places = np.interp(np.linspace(0, len(path) - 1, steps + 1), np.arange(len(path)), path)
    return _rungs(places[1:-1].tolist(), path[0])


def optimise(process: Process, levels: np.ndarray, bounds: np.ndarray, steps: int, rule: str) -> list[int]:
    """The path of `steps` steps from the noisiest rung to the least noisy, from a rule's times.

    As in the paper the schedule is found at 10 steps first; for more it is subdivided (20, 40, ...) and refined each
    time; and it is brought to `steps` by interpolation, and refined there. So it stays near a schedule of 10 steps that
    had a sensible start. That is wanted: the least bound of all, which dynamic programming finds on the same table,
    crowds few times where the bound is steepest, and samples worse.
    """
    times = make_times(process, START_STEPS, rule, "min")[1:-1]
    places = [int(np.abs(np.log(levels) + process.log_snr(t)).argmin()) for t in times]
    path = refine(bounds, _rungs(places, len(levels) - 1))
    while len(path) - 1 < steps:
        path = refine(bounds, _spread(path, 2 * (len(path) - 1)))
    return path if len(path) - 1 == steps else refine(bounds, _spread(path, steps))


def ays(job: Job, solver: str | None = None, floor: float | None = None, rungs: int = 96, samples: int = 256) -> None:
    """Schedules of least divergence (Sabour et al., 2024, section 3).

    The bound is estimated on the reference's samples, noised along paths of the forward process, for steps between any
    two rungs of a ladder of noise levels. Each of RULES is a start of its own, and the schedule of the least bound is
    offered, with a last step to the clean sample.

    Args:
        solver: the one that runs on the grid; by default all of SOLVERS in turn.
        floor: the noise level, in parts of the data's standard deviation, from which the last step is taken; 0 is the
            paper's, `t_min`. The bound weighs small noise as the SDE needs it, and with few evaluations a plan for the
            ODE does better to leave that to the last step. By default all of FLOORS are offered.
        rungs: noise levels at which the bound is estimated, and from which times are chosen.
        samples: how many of the reference's are noised, at most.
    """
    process = job.process
    steps = solver_steps(process, job.nfe, solver)
    if floor is not None and not 0 <= floor <= 1:
        raise ValueError(f"floor is a noise level from 0 to 1 of the data's standard deviation, got {floor}")
    if min(steps.values()) < 2:
        raise ValueError(
            f"a schedule to place needs 2 steps at least, one of them to the clean sample: got nfe={job.nfe}"
        )
    if rungs < (least := 4 * max(START_STEPS, *steps.values())):
        raise ValueError(f"{job.nfe} evaluations need a ladder of at least {least} rungs, got {rungs}")
    state = job.state
    if state is None:
        part = job.train.part(0, min(samples, job.noises))
        spread = float(part.reference.double().std())
        levels = ladder(process, rungs, max(spread, 1e-3))
        squared = changes(job.model, part.reference, levels.tolist(), part.condition, job.seed, part.first)
        bounds = step_bounds(levels, squared)
        grids = {}
        for n in sorted(set(steps.values())):
            for part_of in FLOORS if floor is None else (floor,):
                lowest = int(np.searchsorted(levels, part_of * spread))
                above, share = levels[lowest:], bounds[lowest:, lowest:]
                paths = [optimise(process, above, share, n - 1, rule) for rule in RULES]
                path = min(paths, key=lambda path: total(share, path))
                inner = [process.time(-math.log(above[i])) for i in path[1:]]
                if lowest == 0:
                    inner[-1] = process.t_min
                grids[f"{n}, {part_of:g}"] = [process.t_max, *inner, process.t_zero]
        state = {"grids": grids, "tried": 0}
        job.save(state)
    plans = [
        on_grid(process, name, times, f"ays, floor {key.split(', ')[1]}")
        for name, n in steps.items()
        for key, times in state["grids"].items()
        if key.startswith(f"{n}, ")
    ]
    offer_in_turn(job, plans, state)
