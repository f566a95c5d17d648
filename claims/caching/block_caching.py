"""Claims of block caching: a schedule of its own for every block against one for all, and against fewer steps."""

from __future__ import annotations

import functools

from claims.caches import DIFFERENCE, Setting, at_most, cost, evenly
from claims.common import Outcome, experiment, slow, thrice
from fewstep.caching.block_caching import block_caching
from fewstep.caching.block_changes import calibrate
from fewstep.caching.branches import branches
from fewstep.caching.common import Cached

CALIBRATED = {"change": 32, "end": 8}  # noises, others than those that are measured


@functools.cache
def measured(on: Setting, seed: int, measure: str) -> dict[str, list[float]]:
    noise, condition = on.noises(seed + 100, CALIBRATED[measure])
    return calibrate(on.denoiser, on.made, noise, measure, **condition)


@functools.cache
def schedules(on: Setting, seed: int, measure: str, order: int) -> tuple[Cached, Cached, float]:
    """Block caching, every block at every second evaluation, and what the first costs: no more than the second."""
    found, even = measured(on, seed, measure), evenly(on.denoiser, branches(on.denoiser), 2, order)
    cached = at_most(
        lambda delta: block_caching(on.denoiser, **found, delta=delta, order=order), on.steps, cost(even, on.steps)
    )
    return cached, even, cost(cached, on.steps)


@experiment
def _nearer(seed: int, on: Setting, measure: str, order: int, against: str) -> Outcome:
    cached, even, spent = schedules(on, seed, measure, order)
    fewer, own = on.fewer(spent), on.deviation(seed, cached)
    about = f"order {order}, {spent:.1f} whole evaluations by operations, {CALIBRATED[measure]} noises to calibrate"
    about += f", {on.about}"
    if against == "fewer":
        return Outcome(own, on.deviation(seed, made=fewer), f"{on.solver}, {fewer.nfe} steps", about, unit=DIFFERENCE)
    words = f"all blocks at every second evaluation, order {order}, {cost(even, on.steps):.1f} whole evaluations"
    return Outcome(own, on.deviation(seed, even), words, about, unit=DIFFERENCE)


SETTINGS = [Setting(model, steps=steps) for model in ("digits", "digits-dit") for steps in (20, 50)]
WORDS = {"digits": "digits", "digits-dit": "the transformer of digits"}
BY = {"change": "by changes of its answers", "end": "by deviations of the samples"}
THAN = {"even": "less than all blocks at every second evaluation", "fewer": "less than fewer steps of equal cost"}

CLAIMS = tuple(
    slow("block-caching", f"{BY[measure]}, order {order}, deviates {THAN[against]}: ddim's {on.steps} steps on"
         f" {WORDS[on.model]}", thrice(_nearer(on, measure, order, against)))
    for measure in ("change", "end")
    for on in SETTINGS
    for order in (1, 2)
    for against in ("even", "fewer")
)  # fmt: skip
