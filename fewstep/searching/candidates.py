"""Every hand-made sampler at a number of evaluations: solver x timestep rule x end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import card, methods
from fewstep.core.ops import Combine, Evaluate
from fewstep.core.plan import Plan
from fewstep.core.process import Process
from fewstep.sampling.build import fixed_plan as make_plan
from fewstep.sampling.build import solver_names
from fewstep.searching.problem import Problem, run_all
from fewstep.searching.reference import relative_error
from fewstep.timesteps.grid import ENDS
from fewstep.timesteps.rules import short

Rule = Callable[..., list[float]]


@dataclass(frozen=True)
class Candidate:
    """A plan, its score (relative endpoint error, lower is better) and what it is called."""

    plan: Plan
    score: float

    @property
    def name(self) -> str:
        about = self.plan.about
        return f"{about['solver']}, {about['timesteps']}, to {about['end']}"


def _fingerprint(plan: Plan) -> tuple[object, ...]:
    """Equal for plans with the same numbers, whatever their solvers are called."""
    parts: list[object] = []
    for op in plan.ops:
        if isinstance(op, Evaluate):
            parts.append((op.x, round(op.t, 9), op.outputs))
        elif isinstance(op, Combine):
            parts.append((op.slot, tuple((slot, float(f"{c:.9g}")) for slot, c in op.terms)))
    return tuple(parts)


def _short(start: float, stop: float) -> Rule:
    """The rule `short` between two log-SNRs, with a name of its own."""

    def rule(process: Process, steps: int, end: str = "zero") -> list[float]:
        return short(process, steps, end, start, stop)

    rule.__name__ = f"short {start:g} to {stop:g}"
    return rule


# `short` with several cuts, because the best ones depend on the data's scale and on the evaluations; for the solvers
# that do best in few steps.
_CUTS = [_short(start, stop) for start in (-3.0, -2.3, -1.6, -1.0) for stop in (2.0, 3.0, 4.0)]
_CUT_SOLVERS = ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2", "vab-2", "vab-3")


# Solvers that are never near the best at 4 to 10 evaluations (damped, restarted, of several evaluations a step), or
# that need a choice of their own.
_LEFT_OUT = ("ghvb", "rho-rk", "dpm-fast", "restart", "unified", "lms", "ab-x0", "pndm")
# Stochastic unless told otherwise, and good without their noise.
_QUIET: dict[str, dict[str, Any]] = {"sa-solver": {"tau": 0.0}}


def _tried() -> list[str]:
    """The solvers tried where none are named; of those of order 1, which are all ddim, that alone."""
    kept = []
    for solver in solver_names():
        method, order = card(solver, "solver")
        if method.name not in _LEFT_OUT and (order != 1 or method.name == "unipc"):
            kept.append(solver)
    return kept


def hand_made(process: Process, nfe: int, solvers: Sequence[str] | None = None) -> Iterator[Plan]:
    """The deterministic plans of exactly `nfe` evaluations, each once, of the solvers named or all worth a try.

    Discrete rules only where there is a table.
    """
    seen = set()
    rules: list[str | Rule] = [method.name for method in methods("rule")]
    if process.table_steps is None:
        rules = [rule for rule in rules if rule not in ("leading", "linspace", "trailing")]
    for solver in _tried() if solvers is None else solvers:
        options = _QUIET.get(solver, {})
        if card(solver, "solver")[0].facts.get("stochastic") and not options:
            continue
        for rule in rules + (_CUTS if solver in _CUT_SOLVERS else []):
            for end in ENDS:
                try:
                    plan = make_plan(process, solver, timesteps=rule, nfe=nfe, end=end, **options)
                except ValueError:  # this solver or rule cannot do with so few
                    continue
                if plan.nfe == nfe and (print_ := _fingerprint(plan)) not in seen:
                    seen.add(print_)
                    yield plan


def score(plan: Plan, model: Denoiser, problem: Problem) -> float:
    """The plan's relative endpoint error on a problem; infinite where it diverges."""
    try:
        samples = run_all(plan, model, problem.noise, problem.condition, problem.seed, problem.first)
    except ValueError as error:
        if "not finite" in str(error):
            return float("inf")
        raise
    return relative_error(samples, problem.reference)


FINALISTS = 12


def rank(plans: list[Plan], model: Denoiser, problem: Problem) -> list[Candidate]:
    """The plans by score, best first: all on an eighth of the noises (at least 16), the better quarter on three times
    as many, the best dozen on all of them."""
    size = max(16, len(problem) // 8)
    ranked = [Candidate(plan, 0.0) for plan in plans]
    keep = len(ranked)
    for n, narrower in ((size, len(ranked) // 4), (3 * size, FINALISTS), (len(problem), 0)):
        part = problem.part(0, n)
        again = [Candidate(c.plan, score(c.plan, model, part)) for c in ranked[:keep]]
        ranked = sorted(again, key=lambda c: c.score) + ranked[keep:]
        keep = max(FINALISTS, narrower)
    return ranked
