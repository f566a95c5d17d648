"""From a solver to a plan: traced once, or once per band and merged; and rewrites of plans, band by band."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from fewstep.core.bands import Bands
from fewstep.core.ops import Evaluate, Op, Spread, merge, per_band
from fewstep.core.plan import Plan
from fewstep.core.process import Process, Time
from fewstep.core.trace import Solver, Trace


def record(
    solver: Solver, process: Process, times: Sequence[float], options: Mapping[str, Any], about: Mapping[str, Any]
) -> Plan:
    """Trace `solver(trace, process, times, **options)` on a grid of decreasing times.

    Under a process with bands the solver is traced on each of them. Times that it places itself, between those of the
    grid, are the clock's for all bands. Single-step solvers of order 3 and above assume where in log-SNR those times
    lie, so under bands of different schedules they are of order 2; multistep solvers read them, and keep their order.
    """
    first = times[0]

    def trace(band: Process) -> tuple[tuple[Op, ...], int]:
        traced = Trace(band)
        return traced.program(solver(traced, band, list(times), **options))

    if not isinstance(process, Bands):
        ops, result = trace(process)
        start = (process.alpha(first), process.sigma(first))
        return Plan(ops, result, tuple(map(float, times)), start, process.config(), about)

    def all_bands(one: Callable[[Process], tuple[tuple[Op, ...], int]]) -> list[tuple[tuple[Op, ...], int]]:
        known: dict[Process, tuple[tuple[Op, ...], int]] = {}  # equal bands are traced once
        return [known[band] if band in known else known.setdefault(band, one(band)) for band in process.bands]

    clock = _Follow(process.clock)
    lead = trace(clock)
    programs = all_bands(trace)
    grids = [[op.t for op in ops if isinstance(op, Evaluate)] for ops, _ in (lead, *programs)]
    if any(grid != grids[0] for grid in grids):
        programs = all_bands(lambda band: trace(_Follow(band, clock.log)))
    ops, result = merge(programs, str(about.get("solver", "solver")))
    return Plan(
        ops,
        result,
        tuple(map(float, times)),
        (per_band([b.alpha(first) for b in process.bands]), per_band([b.sigma(first) for b in process.bands])),
        process.config(),
        about,
        Spread(process.index, process.shape, len(process.bands)),
    )


class _Follow(Process):
    """A band that takes from the clock the times which a solver works out, so that all bands are evaluated together.

    `process.time(x)` of a number is recorded in `log`, or answered from `given`, the clock's answer at that point.
    """

    name = "follow"

    def __init__(self, band: Process, given: Sequence[float] | None = None):
        self.band, self.given = band, None if given is None else iter(given)
        self.log: list[float] = []
        self.t_min, self.t_max, self.t_zero = band.t_min, band.t_max, band.t_zero

    def _apply(self, name: str, t: Time) -> Time:
        if name != "_time" or isinstance(t, Tensor):
            return self.band._apply(name, t)
        value = self.band._apply(name, t) if self.given is None else next(self.given, math.nan)
        self.log.append(value)
        return value

    @property
    def table_steps(self) -> int | None:
        return self.band.table_steps

    def config(self) -> dict[str, Any]:
        return self.band.config()


def rewrite(plan: Plan, change: Callable[[Plan], Plan]) -> Plan:
    """Change a plan's operations in each of its bands; `change` receives a plan of plain floats.

    The `about` and times of the plans that `change` returns must be the same in all bands.
    """
    if plan.spread is None:
        return change(plan)
    changed = [change(plan.band(k)) for k in range(plan.spread.bands)]
    ops, result = merge([(band.ops, band.result) for band in changed], plan.name)
    return replace(plan, ops=ops, result=result, times=changed[0].times, about=changed[0].about)
