"""A cache calibrated for one plan: which part stands at which of its evaluations, and how near that stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.caching.calibrate import for_plan
from fewstep.caching.method import method
from fewstep.caching.parts import Part, cut, rest, units
from fewstep.caching.recipe import ANSWER, OUTPUT, Recipe
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.networks.blocks import networks_of

METHODS = (
    Method(
        "budget",
        kind="cache",
        claim="leaves out what a plan can do without for an error that was asked for, measured and bounded",
        use="budget",
        facts={"wraps": True, "plan": True},
    ),
)

WHOLE = "whole"


@dataclass(frozen=True)
class Timetable(Sequence[str]):
    """What runs at each evaluation of a plan, in words; printed as a row an evaluation."""

    rows: tuple[str, ...]
    times: tuple[float, ...]
    orders: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        return self.rows[i]

    def __str__(self) -> str:
        lines = []
        for number, (row, t, order) in enumerate(zip(self.rows, self.times, self.orders, strict=True)):
            more = "" if row == WHOLE else f": forecast, order {order}"
            lines.append(f"{number:>4}  t {t:<10.6g} {row}{more}")
        return "\n".join(lines)


def parts_of(model: Denoiser) -> dict[str, Part]:
    """What may stand still in a model: its output and, where its network has blocks, what lies below each level of a
    UNet, or all of a transformer's blocks but the first, and but the first half."""
    found = {OUTPUT: ANSWER}
    try:
        blocks = networks_of(model)[0]
    except ValueError:
        return found
    levels = sorted({block.level for block in blocks.values()})
    for level in levels:
        try:
            part = cut(model, level)
        except ValueError:
            continue
        found[part.name] = part
    chain = units(blocks)
    if len(levels) == 1 and all(block.skippable for block in blocks.values()):
        for front in sorted({1, len(chain) // 2}):
            if 0 < front < len(chain):
                part = rest(model, front)
                found[part.name] = part
    return found


@method("budget")
def budget(
    model: Denoiser,
    rows: Sequence[str],
    times: Sequence[float],
    orders: Sequence[int],
    solver: str,
) -> Recipe:
    """The model with a part left out at each of a plan's evaluations, as `fs.cache(model, error=..., plan=plan)` finds.

    Args:
        rows: at each evaluation "whole", or the part that stands: "output" (nothing is run), "below level 0" and so on.
        times: of the evaluations. solver: the plan's name, as a run's memory has it.
        orders: of the forecast at each evaluation; it stands only where so many answers are kept.

    The plan may start in the middle (`strength`): the rest of the schedule is kept. Every other plan is refused when it
    runs, as is a sampler whose times are not known beforehand.

    Raises:
        ValueError: lists of different lengths, a part that the model does not have.
    """
    if not len(rows) == len(times) == len(orders):
        raise ValueError(f"rows, times and orders differ in length: {len(rows)}, {len(times)} and {len(orders)}")
    known = parts_of(model)
    if unknown := [name for name in rows if name != WHOLE and name not in known]:
        raise suggest("part", unknown[0], known)
    if any(isinstance(k, bool) or int(k) != k or k < 1 for k in orders):
        raise ValueError(f"orders must be whole numbers of at least 1, got {list(orders)}")
    check, before = for_plan(times, solver)
    used = {name: known[name] for name in dict.fromkeys(rows) if name != WHOLE}
    return Recipe(
        parts=used,
        schedule=lambda number, count: () if rows[number] == WHOLE else (rows[number],),
        order={name: max(k for row, k in zip(rows, orders, strict=True) if row == name) for name in used},
        never=not used,
        checks=check,
        offset=before,
        orders=lambda number, name: orders[number],
        rows=Timetable(tuple(rows), tuple(times), tuple(orders)),
    )
