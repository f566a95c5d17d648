"""Grids that searches choose: the fine one they choose from, the solvers that run on them, and their plans."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fewstep.core.methods import card
from fewstep.core.plan import Plan
from fewstep.core.process import Process
from fewstep.sampling.build import fixed_plan as make_plan
from fewstep.searching.job import Job
from fewstep.timesteps.grid import make_times

SOLVERS = ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2", "vab-2", "vab-3")  # those that do best in few steps


def fine_grid(process: Process, points: int) -> list[float]:
    """`points` times from the noise to the clean sample, on karras times."""
    return make_times(process, points - 1, "karras")


def solver_steps(process: Process, nfe: int, solver: str | None = None) -> dict[str, int]:
    """The steps that `solver`, or each of SOLVERS, makes of `nfe` evaluations.

    Raises:
        ValueError: a solver that is unknown, stochastic or live, or that cannot do with so few.
    """
    if solver is not None:
        facts = card(solver, "solver")[0].facts
        if facts.get("stochastic") or facts.get("live"):
            raise ValueError(f"a grid is searched for a deterministic solver with a plan, not for {solver!r}")
    steps = {}
    for name in SOLVERS if solver is None else (solver,):
        made = make_plan(process, name, nfe=nfe)
        steps[name] = len(made.times) - 1
    return steps


def on_grid(process: Process, solver: str, times: Sequence[float], rule: str) -> Plan:
    """The plan of a solver on these times, under the name of the rule that chose them."""
    made = make_plan(process, solver, timesteps=list(times))
    return dataclasses.replace(made, about={**made.about, "timesteps": rule})


def offer_in_turn(job: Job, plans: Sequence[Plan], state: dict[str, object]) -> None:
    """Offer plans one by one; `state["tried"]` counts them, so that a search taken up again goes on from there."""
    for i in range(int(state.get("tried", 0)), len(plans)):  # type: ignore[call-overload]
        job.offer(plans[i])
        state["tried"] = i + 1
        job.save(state)
