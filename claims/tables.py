"""The table behind docs/choose.md: every deterministic solver at several numbers of evaluations, on its best times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from claims.problems import Problem, exact
from fewstep.core.methods import card
from fewstep.core.process import Process
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan, solver_names

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
