"""Every sampler at a number of evaluations that needs no search: solver x timestep rule x end, and universal plans."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.caching.ab_cache import ab_cache
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import card, methods
from fewstep.core.ops import Combine, Evaluate
from fewstep.core.plan import Plan
from fewstep.core.process import Process
from fewstep.core.sampler import Sampler
from fewstep.sampling.build import fixed_plan as make_plan
from fewstep.sampling.build import solver_names
from fewstep.sampling.universal import rows
from fewstep.searching.problem import Problem, run_all
from fewstep.searching.reference import relative_error
from fewstep.searching.shared import run_shared
from fewstep.timesteps.grid import ENDS
from fewstep.timesteps.rules import short

Rule = Callable[..., list[float]]
# Is told what happens in a search, by a word and figures, and may raise to end it.
Watch = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Candidate:
    """A plan, its score (relative endpoint error, lower is better), on how many noises, and what it is called."""

    plan: Plan
    score: float
    n: int = 0

    @property
    def name(self) -> str:
        return described(self.plan)


def described(plan: Sampler) -> str:
    """A plan's solver, its times (of universal plans, the spectrum) and its end."""
    about = plan.about
    times = about.get("options", {}).get("spectrum", about.get("timesteps", ""))
    return f"{about['solver']}, {times}, to {about.get('end', '')}"


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


FORECAST = 10  # evaluations from which on some of a longer plan are worth forecasting


def fitted(process: Process, nfe: int, data_std: float) -> Iterator[Plan]:
    """The plans of exactly `nfe` evaluations that depend on the data's standard deviation.

    The universal ones, where there are any, one for each spectrum; and plans of twice as many evaluations, of which
    every second is forecast from those before.
    """
    if nfe >= FORECAST:
        for solver in ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2"):
            for order in (2, 3):
                plan = make_plan(process, solver, nfe=2 * nfe)
                if (found := ab_cache(plan, 2, order, data_std=data_std)).nfe == nfe:
                    yield found
    for spectrum in rows():
        for end in ENDS:
            try:
                yield make_plan(process, "universal", nfe, end=end, data_std=data_std, spectrum=spectrum)
            except ValueError:  # none of so many evaluations, or none for this process
                continue


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
FIRST = 8  # noises on which all plans are tried, at least


def rounds(plans: int, noises: int) -> list[tuple[int, int]]:
    """The race: how many of the plans are scored on how many of the noises, round by round.

    All on an eighth of the noises (`FIRST` at least), the better quarter on three times as many, the best dozen on all.
    """
    first = min(noises, max(FIRST, noises // 8))
    wanted = [(plans, first), (max(FINALISTS, plans // 4), 3 * first), (FINALISTS, noises)]
    return [(min(plans, kept), min(noises, n)) for kept, n in wanted]


def unwatched(*_: Any) -> None:
    """A `Watch` that does nothing."""


def rank(plans: Sequence[Plan], model: Denoiser, problem: Problem, watch: Watch = unwatched) -> list[Candidate]:
    """The plans by score, best first, raced by `rounds`: each round adds noises for those that are still in it.

    Those that stayed longer come first. The same plans and noises give the same order, and the same scores.

    Args:
        watch: is told "call" before each call of the network, and after each round "tried": name, nfe, error and n (on
            how many noises) of each plan in it.
    """
    norms = problem.reference.double().flatten(1).norm(dim=1)
    distances = [norms[:0] for _ in plans]
    racing, done = list(range(len(plans))), 0
    ranked: list[int] = []

    def value(i: int) -> float:
        found = float(distances[i].mean() / norms[: len(distances[i])].mean())
        return found if math.isfinite(found) else math.inf

    for kept, n in rounds(len(plans), len(problem)):
        ranked = sorted(racing, key=value) + ranked[len(racing) :] if done else racing
        racing = ranked[:kept]
        if n > done:
            part = problem.part(done, n)
            runs = run_shared([plans[i] for i in racing], model, part, lambda: watch("call", {}))
            for i, run in zip(racing, runs, strict=True):
                far = torch.full_like(norms[done:n], math.inf)
                if run.samples is not None:
                    far = (run.samples.double() - part.reference.double()).flatten(1).norm(dim=1)
                distances[i] = torch.cat([distances[i], far])
                watch("tried", {"name": described(plans[i]), "nfe": plans[i].nfe, "error": value(i), "n": n})
        done = max(done, n)
    ranked = sorted(racing, key=value) + ranked[len(racing) :]
    return [Candidate(plans[i], value(i), len(distances[i])) for i in ranked]
