"""A checked grid of times: from a rule or an explicit list, strictly decreasing and distinct."""

from __future__ import annotations

import bisect
import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Real

from fewstep.core.methods import find
from fewstep.core.process import Process

ENDS = ("zero", "min")
FINE = (500, 250, 200, 100, 50, 40, 20, 10, 5, 3, 2, 1)  # steps of a rule's fine grid: the first that it can place


def check_times(process: Process, times: Sequence[float]) -> list[float]:
    """The times as floats; `ValueError` unless they fall strictly, within the process's clock."""
    grid = [float(t) for t in times]
    if len(grid) < 2:
        raise ValueError(f"a grid needs at least two times, got {grid}")
    for i, (t, s) in enumerate(zip(grid, grid[1:], strict=False)):
        if not t > s:
            raise ValueError(f"times must decrease strictly: times[{i}] = {t:g} is followed by {s:g}")
    if not all(math.isfinite(t) for t in grid):
        raise ValueError(f"times must be finite, got {grid}")
    low = min(process.t_zero, process.t_min)
    slack = 1e-9 * (process.t_max - low)
    if grid[0] > process.t_max + slack or grid[-1] < low - slack:
        raise ValueError(f"times must lie between {low:g} and {process.t_max:g}, got {grid[0]:g} ... {grid[-1]:g}")
    return grid


def make_times(
    process: Process,
    steps: int,
    rule: str | Callable[..., list[float]] | Sequence[float] = "log-snr",
    end: str = "zero",
    share: float = 1.0,
) -> list[float]:
    """`steps + 1` decreasing times of `process`.

    Args:
        rule: the name of a rule (see rules.py), a function of (process, steps, end), or an explicit list of times,
            which is used as it stands.
        end: "zero" to end at the clean sample, "min" to end at the process's smallest noise.
        share: in (0, 1], the last part of the rule's grid: the first time is where, of ever more steps, this share is
            left, whatever the number of steps. An explicit list is entered there, which leaves fewer steps.

    Raises:
        ValueError: an unknown rule or end, no steps, a share out of range, or times that do not fall strictly.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    if end not in ENDS:
        raise ValueError(
            f"unknown end {end!r}: a grid ends at 'zero' (the clean sample) or at 'min' (the smallest noise)"
        )
    if not isinstance(rule, str) and not callable(rule):
        given = check_times(process, rule)
        if share == 1:
            return given
        first = _at(given, share)
        return [first, *(t for t in given if t < first)]
    if isinstance(steps, bool) or not isinstance(steps, Real) or steps != steps // 1 or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
    make = find(rule, "rule") if isinstance(rule, str) else rule
    name = rule if isinstance(rule, str) else getattr(rule, "__name__", "rule")
    if share == 1:
        times = make(process, int(steps), end)
    elif "share" in inspect.signature(make).parameters:
        times = make(process, int(steps), end, share=share)
    else:
        times = _last_part(process, int(steps), make, end, share)
    try:
        grid = check_times(process, times)
        if len(grid) != steps + 1:
            raise ValueError(f"it gives {len(grid)} times, not {steps + 1}")
    except ValueError as error:
        raise ValueError(f"the rule {name!r} cannot place {steps} steps here: {error}") from None
    return grid


def _at(grid: Sequence[float], share: float) -> float:
    """The time where this share of a grid's steps is left, by a line between two of its times."""
    place = (1 - share) * (len(grid) - 1)
    k = min(int(place), len(grid) - 2)
    return grid[k] + (place - k) * (grid[k + 1] - grid[k])


def _left(grid: Sequence[float], t: float) -> float:
    """The inverse of `_at`: the share of the steps that is left at time t, between 0 and 1."""
    k = min(max(bisect.bisect_left(grid, -t, key=lambda one: -one) - 1, 0), len(grid) - 2)
    place = k + (grid[k] - t) / (grid[k] - grid[k + 1])
    return min(max(1 - place / (len(grid) - 1), 0.0), 1.0)


def _last_part(process: Process, steps: int, make: Callable[..., list[float]], end: str, share: float) -> list[float]:
    """The last part of the grid of a rule that is a function: its own grid of so many steps, each of its times moved to
    where the share of what was left is left.

    The rule's attribute `fine`, where it has one, places the many steps by which that is measured.
    """
    many = getattr(make, "fine", make)
    for count in FINE:
        try:
            fine = check_times(process, many(process, count, "min"))
        except ValueError:
            continue
        if len(fine) == count + 1:
            break
    else:
        raise ValueError(f"the rule {getattr(make, '__name__', 'rule')!r} cannot begin in the middle here")
    grid = (many if steps <= 2 else make)(process, steps, end)
    above = [_left(fine, t) for t in grid if t > fine[-1]]
    return [*(_at(fine, share * (left / above[0])) for left in above), *(t for t in grid if t <= fine[-1])]
