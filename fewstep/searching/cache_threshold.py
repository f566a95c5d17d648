"""The threshold of a cache that decides as it runs, for an error: bisection on what is measured.

Such thresholds are cliffs: a little more, and the samples are other ones. So nothing is read off the threshold itself.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.caching.common import Cached
from fewstep.caching.recipe import Bound
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import find
from fewstep.core.plan import Plan
from fewstep.core.sampler import Sampler
from fewstep.data.dataset import Dataset
from fewstep.searching.cache_budget import BOUNDED, CHECKED, SHARE, SURE, check_asked, coverage, each_deviation
from fewstep.searching.cache_edges import deviation
from fewstep.searching.problem import data_for, draw, run_all
from fewstep.searching.shared import threads_for

LEAST, MOST = 1e-4, 4.0  # thresholds tried
HALVINGS = 10


@torch.no_grad()
def find_threshold(
    model: Denoiser,
    method: str,
    error: float,
    plan: Sampler | None,
    *,
    seed: int = 0,
    calibrate: int = 16,
    data: str | Path | Dataset | None = None,
    **options: Any,
) -> Cached:
    """The cache `method` with the largest threshold found whose samples deviate by no more than `error`.

    Bisection between `LEAST` and `MOST`, in the logarithm, on `calibrate` noises; the thresholds found good are then
    checked on 32 fresh ones, the largest first, and the deviation of the one taken is bounded by 100 more. Where none
    is good enough the threshold is 0, and the cache the model.

    Raises:
        ValueError: a method without a threshold, a threshold among the options, and as `find_budget`.
    """
    check_asked(model, error, plan, calibrate, None, "flops")
    assert isinstance(plan, Plan)
    make: Callable[..., Cached] = find(method, "cache")
    if "threshold" not in inspect.signature(make).parameters:
        raise ValueError(f"{method!r} has no threshold that could be found: leave error out, or leave the method out")
    if "threshold" in options:
        raise ValueError("error finds the threshold: give one of them")
    own = None if data is None else data_for(model, data)
    dtype = next((p.dtype for p in model.parameters() if p.dtype == torch.float64), torch.float32)
    begin, tried = time.perf_counter(), list[dict[str, float]]()

    def noises(first: int, n: int) -> tuple[Tensor, dict[str, Any], int, Tensor]:
        noise, condition = draw(model, seed, first, n, dtype, own)
        return noise, condition, first, run_all(plan, model, noise, condition, seed, first)

    def samples(cached: Denoiser, on: tuple[Tensor, dict[str, Any], int, Tensor]) -> Tensor:
        return run_all(plan, cached, on[0], on[1], seed, on[2])

    with threads_for(model):
        few = noises(0, calibrate)

        def off(threshold: float) -> float:
            found = deviation(samples(make(model, threshold=threshold, **options), few), few[3])
            tried.append({"threshold": threshold, "error": found})
            return found if math.isfinite(found) else math.inf

        good, low, high = list[float](), LEAST, MOST
        if off(LEAST) <= error:
            good.append(LEAST)
            for _ in range(HALVINGS):
                middle = math.sqrt(low * high)
                if off(middle) <= error:
                    good.append(middle)
                    low = middle
                else:
                    high = middle
        checked, chosen, told = noises(calibrate, CHECKED), 0.0, 0.0
        for threshold in sorted(good, reverse=True):
            found = deviation(samples(make(model, threshold=threshold, **options), checked), checked[3])
            if found <= error:
                chosen, told = threshold, found
                break
        many, cached = noises(calibrate + CHECKED, BOUNDED), make(model, threshold=chosen, **options)
        result = plan.run(cached, many[0], seed=seed, first=many[2], dtype=dtype, **many[1])
        apart, report = each_deviation(result.samples, many[3]).tolist(), result.report
    figures = {
        "asked": error,
        "error": told,
        "threshold": chosen,
        "evaluations": plan.nfe,
        "cost": report.get("cost", float(plan.nfe)),
        "reused": 1 - report.get("whole", plan.nfe) / plan.nfe,
        "tried": tried,
        "noises": {"calibrated": calibrate, "checked": CHECKED, "bounded": BOUNDED, "seed": seed},
        "seconds": time.perf_counter() - begin,
    }
    bound = asdict(Bound(coverage(apart), SHARE, SURE, BOUNDED))
    return make(model, threshold=chosen, bound=bound, figures=figures, **options)
