"""The Timestep Aligner: the time told to the network, fitted step by step on the states that are really reached."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.core.process import Process
from fewstep.sampling.alignment import align
from fewstep.sampling.build import fixed_plan as make_plan
from fewstep.searching.candidates import rank
from fewstep.searching.grids import SOLVERS
from fewstep.searching.job import Job
from fewstep.searching.stepwise import Stepper, Values, distance, least, places

METHODS = (
    Method(
        "aligner",
        paper="Towards More Accurate Diffusion Model Acceleration with a Timestep Aligner (Xia et al., 2023)",
        arxiv="2310.09469",
        claim="one network time a step, fitted so that the step goes where the teacher goes",
        use="aligner",
        facts={"quick": {"trajectories": 16, "timesteps": "log-snr"}},
    ),
)

RULES = ("log-snr", "karras", "uniform", "quadratic", "short")


def time_between(process: Process, grid: Sequence[float], i: int, u: float) -> float:
    """The time `u` of the way from `grid[i]` to the next (u > 0) or to the one before (u < 0), in log-SNR where both
    have one and in time elsewhere; never below the process's `t_min`, where no network was trained."""
    t = grid[i]
    other = max(grid[i + 1], process.t_min) if u > 0 else grid[max(i - 1, 0)]
    if process.alpha(max(t, other)) > 0 and process.sigma(min(t, other)) > 0:
        a, b = process.log_snr(t), process.log_snr(other)
        return process.time(a + abs(u) * (b - a)) if u != 0 and a != b else t
    return t + abs(u) * (other - t)


def fit_times(
    job: Job,
    plan: Plan,
    trajectories: int,
    known: Sequence[float] = (),
    save: Callable[[list[float]], None] | None = None,
) -> list[float]:
    """A network time for each of the plan's evaluations, in turn.

    With the earlier ones as they were found, each is that time between the evaluation's neighbours which brings the
    next state nearest to the teacher's: which makes the displacement from the state that the plan has reached the true
    one, as far as one number can.

    `known` are times fitted before; `save` is called with all so far after each.
    """
    evaluations, taus, process = plan.evaluations, list(known), job.process
    if len(taus) == len(evaluations):
        return taus
    grid = list(plan.times)
    last = grid[-1]
    nexts = [*(op.t for op in evaluations[1:]), last]
    slots = [*(op.x for op in evaluations[1:]), plan.result]
    wanted = sorted(set(nexts), reverse=True)
    targets = dict(zip(wanted, job.trajectory(wanted, trajectories), strict=True))
    stepper = Stepper(job.model, job.train.part(0, min(trajectories, job.noises)))
    at = [*places(plan), len(plan.ops)]
    values = stepper.run(plan.ops[: at[0]], stepper.start(plan))
    for k, op in enumerate(evaluations):
        if k >= len(known):
            clock = sorted({*grid, op.t}, reverse=True)
            moved = functools.partial(time_between, process, clock, clock.index(op.t))
            step = functools.partial(_step, stepper, plan, values, at[k], at[k + 1], k)
            target = targets[nexts[k]]
            miss = functools.partial(_miss, step, moved, slots[k], target)
            taus.append(moved(least(miss, -1.0, 1.0, 0.0)))
            if save is not None:
                save(taus)
        values = _step(stepper, plan, values, at[k], at[k + 1], k, taus[k])
    return taus


def _step(stepper: Stepper, plan: Plan, values: Values, begin: int, end: int, k: int, tau: float) -> Values:
    """The operations from evaluation k to the next, the network told `tau`."""
    taus = [op.t for op in plan.evaluations]
    return stepper.run(align(plan, [*taus[:k], tau, *taus[k + 1 :]]).ops[begin:end], values)


def _miss(
    step: Callable[[float], Values], moved: Callable[[float], float], slot: int, target: Tensor, u: float
) -> float:
    return distance(step(moved(u))[slot], target)


def aligner(job: Job, solver: str | None = None, timesteps: str | None = None, trajectories: int = 32) -> None:
    """Network times tuned one after another (Xia et al., the sequential strategy of section 3.3).

    Every base plan is offered as it is, then with its times.

    Args:
        solver, timesteps: the base; by default ddim, which gains most, and the two best of the other solvers that do
            well in few steps, each on that of RULES which suits it best.
        trajectories: training noises that the times are fitted on, at most.
    """
    process, state = job.process, job.state
    if state is None:
        rules = RULES if timesteps is None else (timesteps,)
        solvers = SOLVERS if solver is None else (solver,)
        plans = [make_plan(process, s, nfe=job.nfe, timesteps=r) for s in solvers for r in rules]
        best: dict[str, str] = {}
        for candidate in rank(plans, job.model, job.held_out):
            best.setdefault(candidate.plan.name, candidate.plan.about["timesteps"])
        bases = sorted(best.items(), key=lambda base: base[0] != "ddim")[:3]
        state = {"bases": [list(base) for base in bases], "times": {}, "tried": 0}
        job.save(state)
    for i, (name, rule) in list(enumerate(state["bases"]))[state["tried"] :]:
        base = make_plan(process, name, nfe=job.nfe, timesteps=rule)
        job.offer(base)

        def save(taus: list[float], key: str = str(i)) -> None:
            state["times"][key] = list(taus)
            job.save(state)

        taus = fit_times(job, base, trajectories, state["times"].get(str(i), ()), save)
        job.offer(align(base, taus))
        state["tried"] = i + 1
        job.save(state)
