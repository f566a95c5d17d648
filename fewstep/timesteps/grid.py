"""A checked grid of times: from a rule or an explicit list, strictly decreasing and distinct."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real

from fewstep.core.methods import find
from fewstep.core.process import Process

ENDS = ("zero", "min")


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
) -> list[float]:
    """`steps + 1` decreasing times of `process`.

    Args:
        rule: the name of a rule (see rules.py), a function of (process, steps, end), or an explicit list of times,
            which is used as it stands.
        end: "zero" to end at the clean sample, "min" to end at the process's smallest noise.

    Raises:
        ValueError: an unknown rule or end, no steps, or times that do not fall strictly.
    """
    if end not in ENDS:
        raise ValueError(
            f"unknown end {end!r}: a grid ends at 'zero' (the clean sample) or at 'min' (the smallest noise)"
        )
    if not isinstance(rule, str) and not callable(rule):
        return check_times(process, rule)
    if isinstance(steps, bool) or not isinstance(steps, Real) or steps != steps // 1 or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
    make = find(rule, "rule") if isinstance(rule, str) else rule
    times = make(process, int(steps), end)
    name = rule if isinstance(rule, str) else getattr(rule, "__name__", "rule")
    try:
        grid = check_times(process, times)
        if len(grid) != steps + 1:
            raise ValueError(f"it gives {len(grid)} times, not {steps + 1}")
    except ValueError as error:
        raise ValueError(f"the rule {name!r} cannot place {steps} steps here: {error}") from None
    return grid
