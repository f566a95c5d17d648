"""LD3: the times of a grid, and those told to the network, learned by gradient descent through the sampler."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.core.process import Process
from fewstep.core.unrolled import unrolled
from fewstep.sampling.alignment import align
from fewstep.searching.candidates import hand_made, rank
from fewstep.searching.grids import SOLVERS, on_grid, solver_steps
from fewstep.searching.job import Job
from fewstep.searching.problem import Problem

METHODS = (
    Method(
        "ld3",
        paper="Learning to Discretize Denoising Diffusion ODEs (Tong et al., 2024)",
        arxiv="2405.15506",
        claim="times by gradient descent through the sampler, towards the ends of a teacher that may start nearby",
        use="ld3",
        facts={"quick": {"iterations": 3, "trajectories": 16}},
    ),
)

WINDOW = 0.5  # the network's time moves by at most this part of the way to its neighbours
STRIDE = 0.2  # of a noise at each iteration, in parts of the ball's radius
EVERY = 5  # iterations between two offers


class Schedule:
    """The times of a solver's evaluations as a vector, and back.

    The vector holds K + 1 logits, whose softmax are the gaps in log-SNR before the first of K times, between them, and
    after the last up to `t_min`; and K numbers whose tanh moves the network's time within WINDOW of the smaller gap
    beside it. The grid ends at the clean sample.
    """

    def __init__(self, process: Process, solver: str, times: Sequence[float]):
        self.process, self.solver, self.n = process, solver, len(times) - 1
        low = process.log_snr(process.t_max)
        self.low = low if math.isfinite(low) else min(-8.0, process.log_snr(times[1]) - 1)
        self.high = process.log_snr(process.t_min)
        # Gaps are at least a thousandth of the range, so that a logit can move them.
        log_snr = [max(process.log_snr(t), self.low) for t in times[:-1]]
        gaps = np.maximum(np.diff([self.low, *log_snr, self.high]) / (self.high - self.low), 1e-3)
        self.initial = np.concatenate((np.log(gaps / gaps.sum()), np.zeros(self.n)))

    def plan(self, theta: np.ndarray) -> Plan:
        """The vector `(2 K + 1,)` as a plan."""
        process, n = self.process, self.n
        gaps = np.exp(theta[: n + 1] - theta[: n + 1].max())
        gaps *= (self.high - self.low) / gaps.sum()
        log_snr = self.low + np.cumsum(gaps)[:-1]
        times = [process.time(float(v)) for v in log_snr]
        made = on_grid(process, self.solver, [*times, process.t_zero], "ld3")
        shifts = WINDOW * np.minimum(gaps[:-1], gaps[1:]) * np.tanh(theta[n + 1 :])
        if not shifts.any():
            return made
        told = {t: process.time(float(v)) for t, v in zip(times, log_snr + shifts, strict=True)}
        return align(made, [told[op.t] for op in made.evaluations])


def _numbers(plan: Plan, kind: str) -> tuple[np.ndarray, list[torch.Size]]:
    """Everything in which two plans of one structure differ: start, times, weights, conversions, flat in float64."""
    times, weights, conversions = plan.table.numbers(kind, torch.device("cpu"), torch.float64)
    parts = [torch.tensor(plan.start[1], dtype=torch.float64), *times, *weights, *conversions]
    return torch.cat([part.reshape(-1) for part in parts]).numpy(), [part.shape for part in parts]


def gradient(
    schedule: Schedule, theta: np.ndarray, job: Job, problem: Problem, offset: Tensor, kind: str, h: float = 1e-4
) -> tuple[Tensor, np.ndarray, Tensor]:
    """The distances `(n,)` of the plan's ends from the reference's, and the gradient of their mean in `theta`, float64,
    and of each in its own noise `(n, *shape)`.

    `offset` is added to the noises. The gradient in the plan's numbers comes from autograd, through the network; that
    of the numbers in `theta` from central differences of the traced plan, which need no evaluation.
    """
    made = schedule.plan(theta)
    flat, shapes = _numbers(made, kind)
    dtype, device = problem.noise.dtype, problem.noise.device
    total, distances, noises = np.zeros(len(flat)), [], []
    steps = made.nfe
    for begin in range(0, len(problem), 64):
        part, moved = problem.part(begin, begin + 64), offset[begin : begin + 64]
        with torch.enable_grad():
            numbers = torch.tensor(flat, dtype=dtype, device=device, requires_grad=True)
            pieces = numbers.split([math.prod(shape) for shape in shapes])
            start, *rest = [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
            stages = (len(rest) - steps) // 2
            noise = (part.noise + moved).detach().requires_grad_(True)
            x = unrolled(
                made.table.structure,
                job.model,
                start * noise,
                rest[:steps],
                rest[steps : steps + stages],
                rest[steps + stages :],
                [],
                part.condition,
            )
            distance = (x - part.reference).flatten(1).norm(dim=1)
            one, two = torch.autograd.grad(distance.sum(), (numbers, noise))
        total += one.double().cpu().numpy() / len(problem)
        distances.append(distance.detach())
        noises.append(two.detach())
    slope = np.zeros(len(theta))
    for k in range(len(theta)):
        ends = []
        for sign in (1.0, -1.0):
            shifted = theta.copy()
            shifted[k] += sign * h
            ends.append(_numbers(schedule.plan(shifted), kind)[0])
        slope[k] = total @ (ends[0] - ends[1]) / (2 * h)
    return torch.cat(distances), slope, torch.cat(noises)


def _bounded(offset: Tensor, radius: float) -> Tensor:
    """Each sample's offset, shortened to at most `radius` times the root of its size."""
    norm = offset.flatten(1).norm(dim=1)
    limit = radius * math.sqrt(offset[0].numel())
    scale = torch.where(norm > limit, limit / norm.clamp_min(1e-30), torch.ones_like(norm))
    return offset * scale.reshape(-1, *[1] * (offset.ndim - 1))


def ld3(
    job: Job,
    solver: str | None = None,
    iterations: int = 60,
    rate: float = 0.05,
    radius: float = 0.5,
    trajectories: int = 64,
) -> None:
    """Times learned by gradient descent (Tong et al., 2024, Algorithm 1), started from the best hand-made grid.

    The student need not start where the teacher did: each training noise may move within a ball (the soft teacher),
    because a plan of few numbers cannot meet every end, and trying to, it would fit them badly. A noise moves down its
    own gradient, and only where that brings its end nearer. What is offered is scored on noises as they are.

    Args:
        solver: the one whose times are learned; by default the two of SOLVERS that do best on hand-made grids.
        iterations: of Adam, for each solver, its rate falling from `rate` as a cosine.
        radius: of the ball around each noise, in parts of the root of its size, over the square of the evaluations (as
            a plan's error falls); 0 holds the noises where they are.
        trajectories: training noises learned from, at most.

    A backward pass costs about two evaluations more for each that is counted.
    """
    process = job.process
    if iterations < 1 or not rate > 0 or not radius >= 0:
        raise ValueError(f"iterations and rate must be positive, radius not negative: {iterations}, {rate}, {radius}")
    solver_steps(process, job.nfe, solver)
    state = job.state
    if state is None:
        wanted = SOLVERS if solver is None else (solver,)
        plans = [made for made in hand_made(process, job.nfe, wanted) if made.about["end"] == "zero"]
        if not plans:
            raise ValueError(f"{solver!r} has no plan of exactly {job.nfe} evaluations")
        best: dict[str, Plan] = {}
        for candidate in rank(plans, job.model, job.held_out):
            best.setdefault(candidate.plan.name, candidate.plan)
        starts = [(name, list(made.times)) for name, made in best.items()][:2]
        state = {"starts": starts, "done": 0, "fit": None}
        job.offer(next(iter(best.values())))
        job.save(state)
    problem = job.train.part(0, min(trajectories, job.noises))
    one = problem.part(0, 1)
    time = torch.tensor(process.t_max, dtype=one.noise.dtype, device=one.noise.device)
    kind = job.model(one.noise * process.sigma(process.t_max), time, **one.condition).kind
    for index in range(state["done"], len(state["starts"])):
        name, times = state["starts"][index]
        schedule = Schedule(process, name, times)
        _descend(job, state, schedule, problem, kind, iterations, rate, radius / job.nfe**2)
        state |= {"done": index + 1, "fit": None}
        job.save(state)


def _descend(
    job: Job,
    state: dict[str, Any],
    schedule: Schedule,
    problem: Problem,
    kind: str,
    iterations: int,
    rate: float,
    radius: float,
) -> None:
    theta, first, second, begin = schedule.initial.copy(), np.zeros(1), np.zeros(1), 0
    offset = torch.zeros_like(problem.noise)
    if (fit := state["fit"]) is not None:
        begin = fit["iteration"]
        theta, first, second = (np.array(fit[key]) for key in ("theta", "first", "second"))
        offset = torch.tensor(fit["offset"], dtype=torch.float64).to(offset).reshape(offset.shape)
    root = math.sqrt(offset[0].numel())
    for i in range(begin, iterations):
        distance, slope, pull = gradient(schedule, theta, job, problem, offset, kind)
        slope = slope / max(1.0, float(np.linalg.norm(slope)))
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        pace = rate * 0.5 * (1 + math.cos(math.pi * i / iterations))
        theta = theta - pace * first / (1 - 0.9 ** (i + 1)) / (np.sqrt(second / (1 - 0.99 ** (i + 1))) + 1e-10)
        if radius > 0:
            lengths = pull.flatten(1).norm(dim=1).clamp_min(1e-30).reshape(-1, *[1] * (offset.ndim - 1))
            trial = _bounded(offset - STRIDE * radius * root * pull / lengths, radius)
            moved = dataclasses.replace(problem, noise=problem.noise + trial)
            ends = job.run(schedule.plan(theta), moved)
            nearer = (ends - problem.reference).flatten(1).norm(dim=1) < distance
            offset = torch.where(nearer.reshape(lengths.shape), trial, offset)
        if (i + 1) % EVERY == 0 or i + 1 == iterations:
            job.offer(schedule.plan(theta))
            parts = {
                "theta": theta,
                "first": first,
                "second": second,
                "offset": offset.flatten().double().cpu().numpy(),
            }
            state["fit"] = {"iteration": i + 1, **{key: value.tolist() for key, value in parts.items()}}
            job.save(state)
