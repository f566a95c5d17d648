"""The tables of the docs: every deterministic solver at several numbers of evaluations, on its best times; and at 5 and
10 evaluations every solver and every search in one list, sorted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from claims.common import EDM, VP, Flow, Process, plan
from claims.problems import Problem, digits, exact, exact_wide
from fewstep.core.methods import card, find
from fewstep.sampling.build import solver_names
from fewstep.sampling.statistics import Statistics, estimate_statistics
from fewstep.searching.job import Job, OutOfBudget
from fewstep.searching.search import search_names

PROCESSES: tuple[Process, ...] = (VP(), EDM(), Flow())
RULES = ("log-snr", "karras", "quadratic", "short", "uniform")
EVALUATIONS = (4, 5, 6, 8, 10, 15, 20)
NOISES, SEED = 128, 0


def solvers() -> list[str]:
    """Every deterministic solver; those of order 1 once, as ddim and euler."""
    names = [name for name in solver_names() if not card(name, "sampling")[0].facts.get("stochastic")]
    return [name for name in names if not name.endswith("-1") or name == "unipc-1"]


def _best(problem: Problem, solver: str, nfe: int) -> dict[str, Any] | None:
    """The solver's smallest error over the rules with at most `nfe` evaluations; None where so few do not do."""
    found: dict[str, tuple[float, int]] = {}
    for rule in RULES:
        try:
            made = plan(problem.model.process, solver, timesteps=rule, nfe=nfe)
        except ValueError:
            continue
        found[rule] = (problem.error(made), made.nfe)
    best = min(found, key=lambda rule: found[rule][0], default=None)
    return None if best is None else {"error": found[best][0], "timesteps": best, "nfe": found[best][1]}


def comparison() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(process, solver, {evaluations allowed: {error, timesteps, nfe}}), one solver after the other.

    `nfe` is what the plan makes: less than allowed for solvers of several evaluations a step.
    """
    for process in PROCESSES:
        problem = exact(process, SEED).part(NOISES)
        for solver in solvers():
            entries = {str(nfe): _best(problem, solver, nfe) for nfe in EVALUATIONS}
            yield process.name, solver, {nfe: entry for nfe, entry in entries.items() if entry is not None}


LEAGUE = (5, 10)  # evaluations
# Of a search: evaluations of the network on one sample, the references' included; fewer where they are dear.
BUDGET, DEAR_BUDGET = 200_000, 60_000
SEARCH_SEED = 1  # its noises are not those on which it is judged
SEARCH_NOISES = 64
POLICIES = ("adadiff",)  # a policy over step counts has no number of evaluations of its own


def league_problems() -> list[Problem]:
    return [exact(VP(), SEED).part(NOISES), exact_wide(VP(), SEED).part(NOISES), digits(SEED)]


def league_names() -> list[tuple[str, str]]:
    """(kind, name) of all that are compared."""
    searches = [name for name in search_names() if name not in POLICIES]
    live = [("live", "evodiff"), ("live", "dpm-solver-v3-2")]
    return [("solver", name) for name in solvers()] + live + [("search", name) for name in searches]


def league(problem: Problem, nfe: int, kind: str, name: str) -> dict[str, Any] | None:
    """One row: the solver on its best rule, or the plan of a search; None where so few evaluations do not do."""
    if kind == "search":
        return _searched(problem, nfe, name)
    if name.startswith("dpm-solver-v3"):
        return _with_statistics(problem, nfe, name)
    best = _best(problem, name, nfe)
    return None if best is None else {"name": name, "kind": kind, **best, "evaluations": 0, "seconds": 0.0}


_STATISTICS: dict[str, Statistics] = {}


def _with_statistics(problem: Problem, nfe: int, name: str) -> dict[str, Any]:
    if problem.name not in _STATISTICS:
        _STATISTICS[problem.name] = estimate_statistics(problem.model)
    process, known = problem.model.process, _STATISTICS[problem.name]
    made = {rule: plan(process, name, timesteps=rule, nfe=nfe, statistics=known) for rule in RULES}
    error, rule = min((problem.error(made[rule]), rule) for rule in RULES)
    row = {"name": name, "kind": "live", "error": error, "timesteps": rule, "nfe": nfe}
    return row | {"evaluations": 0, "seconds": 0.0}


def _searched(problem: Problem, nfe: int, name: str) -> dict[str, Any] | None:
    """The best plan that a search finds within the budget, judged on the problem's noises."""
    budget = DEAR_BUDGET if problem.condition else BUDGET
    job = Job(problem.model, nfe, method=name, seed=SEARCH_SEED, noises=SEARCH_NOISES, evaluations=budget)
    with job, torch.no_grad():
        try:
            find(name, room="searching")(job)
        except OutOfBudget:
            pass
        spent, seconds = job.evaluations, job.seconds
    if job.best is None:
        return None
    rule = f"{job.best.name}, {job.best.about.get('timesteps', '')}"
    row = {"name": name, "kind": "search", "error": problem.error(job.best), "timesteps": rule, "nfe": job.best.nfe}
    return row | {"evaluations": spent, "seconds": round(seconds, 1)}
