"""When parts stand still: functions `(number, evaluations of the run) -> names`, and checks of their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from fewstep.core.arguments import shown

Keys = Callable[[int, int], bool]  # (number, evaluations of the run, 0 if unknown) -> whether it runs whole


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or int(value) != value or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {shown(value)}")
    return int(value)


def share(name: str, value: Any) -> float:
    """A fraction of a run, 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} is a fraction of the run, from 0 to 1, got {shown(value)}")
    return float(value)


def not_negative(name: str, value: Any) -> float:
    """A finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {shown(value)}")
    return float(value)


def every(interval: int) -> Keys:
    """Whole at every `interval`-th evaluation, from the first."""
    return lambda number, count: number % interval == 0


def listed(numbers: Collection[int]) -> Keys:
    """Whole at these evaluations, and at the first."""
    kept = frozenset(numbers)
    return lambda number, count: number == 0 or number in kept


def within(keys: Keys, start: float, stop: float) -> Keys:
    """Outside of `start` to `stop`, fractions of the run, every evaluation is whole.

    Where the length of the run is not known there are no fractions: with other limits than 0 and 1 all are whole.

    Raises:
        ValueError: limits that do not rise within 0 and 1.
    """
    start, stop = share("start", start), share("stop", stop)
    if start >= stop:
        raise ValueError(f"start must lie before stop, got {start:g} and {stop:g}")
    if (start, stop) == (0.0, 1.0):
        return keys

    def found(number: int, count: int) -> bool:
        return not (count and start <= number / count < stop) or keys(number, count)

    return found
