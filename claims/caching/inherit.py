"""Claims of inherited features: of blocks, layers and units, against fewer steps and left-out blocks."""

from __future__ import annotations

import functools
import math
from typing import Any

from claims.caches import UNIT, fewer, model_of, run, steps_of, whole, words
from claims.common import Outcome, compared, experiment, gap, slow
from fewstep.caching.inherit import inherit
from fewstep.core.sampler import Result
from fewstep.denoisers.masked import MaskedDenoiser

N, STEPS, NAME = 64, 50, "digits"
# Of 50 evaluations 17 are keys in each: even, widening to the end, and widest in the middle.
PATTERNS: dict[str, Any] = {
    "even": [(0.0, 3)],
    "widening": [(0.0, 2), (1 / 3, 4), (2 / 3, 6)],
    "widest in the middle": [(0.0, 2), (1 / 3, 5), (2 / 3, 4)],
}


@functools.cache
def _cached(granularity: str, interval: int, order: int, seed: int, pattern: str = "even") -> Result:
    chosen = PATTERNS[pattern] if interval == 3 else "uniform"
    model = inherit(model_of(NAME), interval, granularity, pattern=chosen, order=order)
    return run(model, NAME, steps_of(NAME, "ddim", STEPS), seed, N)


def _gap(seed: int, granularity: str, interval: int, order: int, pattern: str = "even") -> tuple[float, float]:
    """The deviation from the whole run, and the cost in whole evaluations."""
    found = _cached(granularity, interval, order, seed, pattern)
    return gap(found.samples, whole(NAME, "ddim", STEPS, seed, N)), found.report["cost"]


def _about(cost: float, *more: str) -> str:
    return ", ".join([words(NAME, N), f"{STEPS} steps of ddim", *more, f"{1 - cost / STEPS:.0%} of operations saved"])


@experiment
def _nearer(seed: int, granularity: str, order: int) -> Outcome:
    ours, cost = _gap(seed, granularity, 2, order)
    steps, rival = fewer(NAME, "ddim", cost, seed, N)
    figures = [ours, gap(rival, whole(NAME, "ddim", STEPS, seed, N))]
    about = _about(cost, f"every {granularity}, every second evaluation a key, order {order}")
    return compared(figures, f"{steps} whole steps", about, unit=UNIT)


@experiment
def _dropped(seed: int) -> Outcome:
    """The same blocks, left out at the same evaluations."""
    ours, cost = _gap(seed, "block", 2, 1)
    plan, model = steps_of(NAME, "ddim", STEPS), model_of(NAME)
    names = list(inherit(model, 2, "block").recipe.parts)
    masked = MaskedDenoiser(model, {t: names for t in plan.moments[1::2]})
    rival = gap(run(masked, NAME, plan, seed, N).samples, whole(NAME, "ddim", STEPS, seed, N))
    about = _about(cost, "every block, every second evaluation a key, order 1")
    return compared([ours, rival], "the same blocks left out", about, unit=UNIT)


@experiment
def _orders(seed: int, granularity: str) -> Outcome:
    (ours, cost), (theirs, _) = (_gap(seed, granularity, 2, order) for order in (2, 1))
    about = _about(cost, f"every {granularity}, every second evaluation a key")
    return compared([ours, theirs], "order 1", about, unit=UNIT)


@experiment
def _staged(seed: int, pattern: str, granularity: str, order: int) -> Outcome:
    (ours, cost), (theirs, other) = (_gap(seed, granularity, 3, order, name) for name in (pattern, "even"))
    assert math.isclose(cost, other)
    told = " ".join(str(interval) for _, interval in PATTERNS[pattern])
    about = _about(cost, f"every {granularity}, intervals {told} in the thirds of the run, order {order}")
    return compared([ours, theirs], "every third evaluation a key", about, unit=UNIT)


CLAIMS = (
    *(slow("inherit", f"of every {kind} in 50 steps, order {order} is nearer than fewer steps of equal cost",
           _nearer(kind, order))
      for kind in ("block", "layer", "unit") for order in (1, 2)),
    slow("inherit", "what blocks said before is nearer than leaving them out", _dropped()),
    *(slow("inherit", f"forecasts of order 2 of every {kind} are nearer than order 1", _orders(kind))
      for kind in ("block", "layer", "unit")),
    *(slow("inherit", f"intervals {pattern}, with order {order}, are nearer than even ones of equal cost",
           _staged(pattern, "layer", order))
      for pattern in ("widening", "widest in the middle") for order in (1, 2)),
)  # fmt: skip
