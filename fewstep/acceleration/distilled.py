"""A student as a point of the verdict: distilled for the evaluations asked for, judged beside the plans."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from fewstep.acceleration.verdict import Judge
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import card
from fewstep.core.plan import Plan
from fewstep.core.words import number_of
from fewstep.data.dataset import Dataset
from fewstep.distillation.distill import distill, plan_of
from fewstep.searching.alignment import time_between
from fewstep.searching.problem import Problem, for_model, run_all
from fewstep.searching.shared import Ran
from fewstep.searching.stepwise import least

SWEEPS, NEAR = 2, 0.9  # over the intermediate times; how far each may go towards its neighbours
SCAN, REFINE = 5, 8  # points of the search for one time


def student_rows(
    model: Denoiser, method: str, nfe: int, seconds: float, iterations: int | None, seed: int, data: Dataset | None,
    judge: Judge, held_out: Problem, metric: str, progress: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of a student of `nfe` steps, or of one where the method has no others: with its plan, and as `denoiser`
    the student; and a second one where other intermediate times than the plan's do better on noises that are held out.

    Args:
        method: a distiller's name. seconds: of training, or `iterations`. metric: what the times are searched by.

    Raises:
        ValueError: what `distill` raises.
    """
    facts = card(method, "distiller")[0].facts
    steps = 1 if facts["steps"] == 1 else nfe
    budget: dict[str, Any] = {"seconds": seconds} if iterations is None else {"iterations": iterations}
    made = distill(model, method, steps=steps, data=data, seed=seed, judge=False, progress=progress, **budget)
    name = f"student by {method}, {number_of(made.plan.nfe, 'step')}"
    found = [_row(made.model, made.plan, judge) | {"name": name}]
    other = timed(made.model, made.plan, Judge(model, held_out, data), metric)
    if other is not made.plan:
        found.append(_row(made.model, other, judge) | {"name": f"{name}, times searched"})
    for row in found:
        if not facts["pairing"]:  # another sample of the same noise is no error
            row |= {"endpoint": None, "median": None, "low": None, "high": None}
    return found


def _row(student: Denoiser, plan: Plan, judge: Judge) -> dict[str, Any]:
    problem = for_model(judge.problem, student)
    begin = time.perf_counter()
    with torch.no_grad():
        samples = run_all(plan, student, problem.noise, problem.condition, problem.seed, problem.first)
    return judge.measured("student", plan, Ran(samples, time.perf_counter() - begin)) | {"denoiser": student}


def timed(student: Denoiser, plan: Plan, judge: Judge, metric: str) -> Plan:
    """The student's plan with its intermediate times moved, one after another, to where `metric` is least on the
    judge's noises; the plan itself where nothing is lower, and for a student that was trained at its times alone.

    Each time is searched between its neighbours, in log-SNR, from where it is (`searching.stepwise.least`).
    """
    facts, times = student.student, list(plan.times)
    if facts is None or facts.times is not None or len(times) < 3:
        return plan
    kind, process, solver = facts.kind, student.process, facts.solver

    def at(times: list[float]) -> Plan:
        return plan_of(process, kind, len(times) - 1, times[0], tuple(times[:-1]), solver)

    def moved(place: int, u: float) -> list[float]:
        return [*times[:place], time_between(process, times, place, u), *times[place + 1 :]]

    for _ in range(SWEEPS):
        for place in range(1, len(times) - 1):

            def miss(u: float, place: int = place) -> float:
                value = _row(student, at(moved(place, u)), judge)[metric]
                return math.inf if value is None else float(value)

            times = moved(place, least(miss, -NEAR, NEAR, 0.0, SCAN, REFINE))
    return plan if times == list(plan.times) else at(times)
