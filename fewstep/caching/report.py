"""What a run's report says of a cache: how many evaluations were whole, what they cost, and how much was kept."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from fewstep.core.memory import AnyMemory, Part

KINDS = ("whole", "part", "forecast")


@dataclass
class _Told:
    """What has been counted: evaluations, bytes by branch, and rows, of which so many ran whole."""

    seen: set[int] = field(default_factory=set)
    held: dict[int, int] = field(default_factory=dict)
    rows: int = 0
    whole: int = 0


def tell(memory: AnyMemory, key: Hashable, kind: str, cost: float | None, ran: Sequence[bool] | None = None) -> int:
    """Adds an evaluation to the report of each run that shares it; the most bytes that one of these holds.

    Bytes are those of what is kept under names with " @" in them.

    Args:
        key: of the cache. kind: "whole", "part" or "forecast". cost: in whole evaluations, where it is known.
        ran: for each row whether it ran whole, where a gate decides: then kind and cost are those of the other rows,
            and the report has means over the run's samples.
    """
    rows = iter(ran or ())
    for part in memory.parts():
        told = part.once((key, "told"), _Told)
        own = part.memory if isinstance(part, Part) else part
        told.held[id(own.kept)] = sum(v.nbytes for name, v in own.kept.items() if " @" in name)
        told.rows += part.rows
        told.whole += sum(itertools.islice(rows, part.rows))
        report = part.report
        report["bytes"] = max(report.get("bytes", 0), sum(told.held.values()))
        again = part.number in told.seen  # another branch of guidance, or other rows
        told.seen.add(part.number)
        if ran is not None:
            whole = len(told.seen) * told.whole / told.rows
            other = len(told.seen) - whole
            report |= dict.fromkeys(KINDS, 0) | {"whole": _tidy(whole), kind: _tidy(other)}
            if cost is not None:
                report["cost"] = whole + other * cost
        elif not again:
            for name in KINDS:
                report[name] = report.get(name, 0) + (name == kind)
            if cost is not None:
                report["cost"] = report.get("cost", 0.0) + cost
    return max(int(part.report["bytes"]) for part in memory.parts())


def _tidy(count: float) -> float:
    """A count that is whole as an integer."""
    return int(count) if count == int(count) else count
