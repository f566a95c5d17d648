"""Cached points of the verdict: longer plans whose evaluations are forecast until they cost as much as the others."""

from __future__ import annotations

import time
from typing import Any

from fewstep.acceleration.verdict import Judge
from fewstep.core.denoiser import Denoiser
from fewstep.sampling.build import fixed_plan as make_plan
from fewstep.searching.cache_budget import within_cost
from fewstep.searching.candidates import FORECAST
from fewstep.searching.problem import run_all
from fewstep.searching.shared import Ran

LONGER = (1.5, 2.0)  # times as many evaluations
SOLVERS = 2  # of the best hand-made plans


def cached_rows(model: Denoiser, rows: list[dict[str, Any]], nfe: int, seed: int, judge: Judge) -> list[dict[str, Any]]:
    """Rows of the verdict for cached runs of the best hand-made solvers, each as dear as `nfe` evaluations at most.

    rows: the verdict's so far, best first. What stands at which evaluation is measured on noises of the seed's stream.
    Fewer evaluations than `FORECAST` leave nothing to save: then there are none.
    """
    if nfe < FORECAST:
        return []
    found = []
    for solver, rule in _longest(model, rows, nfe):
        for times in LONGER:
            plan = make_plan(model.process, solver, nfe=round(times * nfe), timesteps=rule)
            cached = within_cost(model, plan, nfe, seed, 0)
            if cached is None:
                continue
            problem = judge.problem
            begin = time.perf_counter()
            try:
                samples = run_all(plan, cached, problem.noise, problem.condition, problem.seed, problem.first)
            except ValueError as error:
                if "not finite" not in str(error):
                    raise
                continue
            row = judge.measured("cached", plan, Ran(samples, time.perf_counter() - begin))
            cost = sum(cached.cost(() if part == "whole" else (part,)) for part in cached.schedule or ())
            name = f"{solver}, {rule}, {plan.nfe} evaluations cached"
            found.append(row | {"name": name, "nfe": round(cost, 2), "denoiser": cached})
    return found


def _longest(model: Denoiser, rows: list[dict[str, Any]], nfe: int) -> list[tuple[str, str]]:
    """Solver and rule of the best hand-made plans that there are longer ones of: not of universal and fitted ones."""
    names = dict.fromkeys((row["solver"], row["timesteps"]) for row in rows if row["role"] in ("candidate", "raced"))
    found: list[tuple[str, str]] = []
    for solver, rule in names:
        try:
            make_plan(model.process, solver, nfe=round(max(LONGER) * nfe), timesteps=rule)
        except (ValueError, TypeError):
            continue
        found.append((solver, rule))
    return found[:SOLVERS]
