"""Plans that pass numbers to the network at their evaluations: a guidance scale for each, an interval of guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fewstep.core.methods import Method
from fewstep.core.ops import Evaluate, Op
from fewstep.core.plan import Plan, as_plan
from fewstep.core.sampler import Sampler

METHODS = (
    Method(
        "tell",
        kind="rewrite",
        paper="Applying Guidance in a Limited Interval Improves Sample and Distribution Quality (Kynkaanniemi, 2024)",
        arxiv="2404.07724",
        claim="numbers for the network become columns of a plan: guidance per evaluation, or in an interval",
        use="tell",
    ),
)


def tell(plan: Sampler, **numbers: float | Sequence[float | None]) -> Plan:
    """The plan with numbers that it passes to the network as conditions: `tell(plan, guidance=[1, 3, 3, 1])`.

    Args:
        numbers: for each condition one number for all evaluations, or one for each, in order; None where an evaluation
            leaves the condition to the run.

    Raises:
        ValueError: a count of numbers other than that of evaluations, one that is not finite, a sampler that is not a
            plan.
    """
    made = as_plan(plan)
    columns: dict[str, list[float | None]] = {}
    for name, value in numbers.items():
        column: list[float | None] = [*value] if isinstance(value, Sequence) else [value] * made.nfe
        if len(column) != made.nfe:
            raise ValueError(f"this plan has {made.nfe} evaluations, got {len(column)} numbers for {name!r}")
        if wrong := [number for number in column if number is not None and not math.isfinite(number)]:
            raise ValueError(f"{name} must be finite at every evaluation, got {wrong[0]}")
        columns[name] = column
    ops: list[Op] = []
    count = 0
    for op in made.ops:
        if isinstance(op, Evaluate):
            own = {name: column[count] for name, column in columns.items()}
            told = dict(op.given) | {name: float(number) for name, number in own.items() if number is not None}
            op, count = replace(op, given=tuple(told.items())), count + 1
        ops.append(op)
    return replace(made, ops=tuple(ops))
