"""A plan's solver once more: on the plan's later times, and in another number of steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from fewstep.core.methods import card, methods
from fewstep.core.ops import one_level
from fewstep.core.plan import Plan
from fewstep.core.process import process_from_config
from fewstep.sampling.build import fixed_plan as make_plan


def later(plan: Plan, begin: int) -> Plan:
    """The plan's solver on its times from evaluation `begin` on, with the same evaluations as the plan has there.

    A solver that begins with extra evaluations, as some of order 3 and above do, begins at the highest lower order
    that adds none.

    Raises:
        ValueError: nothing left; a learned plan, or another that its solver's name does not reproduce; an evaluation
            inside a step.
    """
    wanted = [op.t for op in plan.evaluations][begin:]
    if not wanted:
        raise ValueError(f"the plan has {plan.nfe} evaluations: it cannot begin after the last of them")
    if not _is_its_solvers(plan):
        raise ValueError(
            f"a {plan.name!r} plan cannot begin in the middle: its coefficients were made for all of its steps;"
            " use a strength of 1, or a plan of a named solver"
        )
    for start in [k for k, t in enumerate(plan.times[:-1]) if math.isclose(t, wanted[0], rel_tol=1e-12)]:
        for name in _orders(str(plan.about["solver"])):
            made = _made(plan, name, plan.times[start:])
            if made is not None and [op.t for op in made.evaluations] == wanted:
                return made
    raise ValueError(
        f"evaluation {begin} of {plan.nfe} is inside a step of {plan.name!r}, where it cannot begin: take a strength"
        " that leaves out a whole number of steps"
    )


def _orders(name: str) -> Iterator[str]:
    yield name
    method, order = card(name, "solver")
    yield from (f"{method.name}-{p}" for p in range((order or 1) - 1, 0, -1))


def _made(plan: Plan, name: str, times: Sequence[float]) -> Plan | None:
    try:
        return make_plan(
            process_from_config(dict(plan.process)),
            name,
            timesteps=list(times),
            **_options(plan),
        )
    except ValueError:
        return None


def _is_its_solvers(plan: Plan) -> bool:
    """Whether the solver that the plan names produces exactly this plan on its times."""
    made = _made(plan, str(plan.about.get("solver")), plan.times)
    if made is None or made.table.structure != plan.table.structure:
        return False
    return all(
        math.isclose(one_level(a), one_level(b), rel_tol=1e-9, abs_tol=1e-12)
        for mine, theirs in zip(plan.table.stages, made.table.stages, strict=True)
        for row, other in zip(mine.weights, theirs.weights, strict=True)
        for a, b in zip(row, other, strict=True)
    )


def recompiled(plan: Plan, steps: int) -> Plan:
    """The plan's solver in another number of steps, by the rule that placed its own.

    Raises:
        ValueError: a learned plan, or one whose times were given as a list; a rule or solver that cannot.
    """
    about, also = plan.about, f" ({len(plan.times) - 1} steps)" if len(plan.times) - 1 != plan.nfe else ""
    fixed = f"this plan makes {plan.nfe} evaluations{also}, so num_inference_steps={steps} does not fit it"
    rule: str | None = str(about.get("timesteps"))
    further = {key: about[key] for key in ("end", "shift", "strength") if key in about}
    try:
        if rule == plan.name and card(plan.name, "solver")[0].facts.get("own_times"):
            rule = None
        elif not _is_its_solvers(plan) or all(rule != method.name for method in methods("rule")):
            raise ValueError("it is made for its own times, not for a rule that places others")
        made = make_plan(process_from_config(dict(plan.process)), plan.name, steps, rule, **further, **_options(plan))
    except ValueError as error:
        raise ValueError(f"{fixed}: {error}") from None
    return made


def _options(plan: Plan) -> dict[str, Any]:
    return dict(plan.about.get("options", {}))
