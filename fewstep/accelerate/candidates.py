"""Every hand-made sampler at a number of evaluations: solver x timestep rule x end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fewstep.accelerate.point import Problem, run_all
from fewstep.accelerate.reference import relative_error
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import card, methods
from fewstep.core.plan import Combine, Evaluate, Plan
from fewstep.core.process import Process
from fewstep.sampling.build import plan as make_plan
from fewstep.sampling.build import solver_names
from fewstep.timesteps.grid import ENDS


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


def hand_made(process: Process, nfe: int, limit: int | None = None) -> Iterator[Plan]:
    """The deterministic plans of exactly `nfe` evaluations, each once. Discrete rules only where there is a table."""
    seen = set()
    rules = [method.name for method in methods("timesteps")]
    if process.table_steps is None:
        rules = [rule for rule in rules if rule not in ("leading", "linspace", "trailing")]
    for solver in solver_names():
        if card(solver, "sampling")[0].facts.get("stochastic"):
            continue
        for rule in rules:
            for end in ENDS:
                try:
                    plan = make_plan(process, solver, timesteps=rule, nfe=nfe, end=end)
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


def rank(plans: list[Plan], model: Denoiser, problem: Problem) -> list[Candidate]:
    """The plans by score, best first: all on a few noises, the better quarter (at least 12) on all of them."""
    few = problem.part(0, 32)
    first = sorted((Candidate(plan, score(plan, model, few)) for plan in plans), key=lambda c: c.score)
    keep = max(12, len(first) // 4)
    again = [Candidate(c.plan, score(c.plan, model, problem)) for c in first[:keep]]
    return sorted(again, key=lambda c: c.score) + first[keep:]
