"""Claims of caches: how near a run with kept features stays to the whole model's, for the operations that it takes."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode

from claims.common import Denoiser, Outcome, Plan, compared, experiment, gap, plan, slow
from claims.problems import Problem, digits
from fewstep.caching.deepcache import deepcache

NFE = 12
Cache = Callable[[Denoiser], Denoiser]


def _operations(on: Problem, model: Denoiser, made: Plan) -> float:
    """Millions for one sample, both models counted alike: products and convolutions, but not the deep attention."""
    with FlopCounterMode(display=False) as counter:
        on.part(1).run(made, model)
    return counter.get_total_flops() / 1e6


@experiment
def _nearer(seed: int, cache: Cache, what: str) -> Outcome:
    """Against the whole model in fewer steps, as many as take no fewer operations."""
    on, made = digits(seed), plan(digits(seed).model.process, "ddim", NFE)
    cached, whole = _operations(on, cache(on.model), made), _operations(on, on.model, made)
    fewer = plan(on.model.process, "ddim", math.ceil(NFE * cached / whole))
    reference = on.run(made)
    figures = [gap(x, reference) for x in (on.run(made, cache(on.model)), on.run(fewer))]
    about = f"{what}, {NFE} evaluations of ddim, {cached / whole:.0%} of the operations, {on.about}"
    return compared(figures, f"{fewer.nfe} whole evaluations", about, unit="relative difference from the whole run")


@experiment
def _cheaper(seed: int, cache: Cache, what: str) -> Outcome:
    on, made = digits(seed), plan(digits(seed).model.process, "ddim", NFE)
    figures = [_operations(on, model, made) for model in (cache(on.model), on.model)]
    return compared(
        figures, "the whole model", f"{what}, {NFE} evaluations of ddim", unit="million operations a sample"
    )


CLAIMS = (
    *(slow("deepcache", f"lands nearer to the whole model's samples than fewer steps of equal cost, every {every}",
           _nearer(lambda model, every=every: deepcache(model, every), f"deep features kept, whole every {every}"))
      for every in (2, 3)),
    slow("deepcache", "takes fewer operations than the whole model at equal evaluations",
          _cheaper(lambda model: deepcache(model, 3), "deep features kept, whole every 3")),
)  # fmt: skip
