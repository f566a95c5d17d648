"""`fs.cache(model, error=0.01, plan=plan)`, which measures what to leave out, and caches by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import card, made
from fewstep.core.sampler import Sampler
from fewstep.data.dataset import Dataset
from fewstep.searching.cache_budget import find_budget
from fewstep.searching.cache_threshold import find_threshold


@checked
def cache(
    model: Denoiser,
    method: str | None = None,
    *,
    error: float | None = None,
    plan: Sampler | None = None,
    seed: int = 0,
    calibrate: int = 16,
    seconds: float | None = None,
    measure: str = "flops",
    data: str | Path | Dataset | None = None,
    folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Denoiser:
    """A denoiser that leaves out what changes little from one evaluation of a run to the next.

    With a method's name it is wrapped in that (`fewstep methods --kind cache`), with the method's options. With an
    `error` instead, what to leave out is found for a plan: the samples' relative deviation from the whole model's, of
    fresh noises together, is below it. `cached.schedule`, `cached.bound` and `cached.figures` say what was found, and
    whether fewer steps of the same solver are nearer at that cost. With both, the method's `threshold` is found.

    Args:
        error: the deviation, relative to the norm of the samples, above 0.
        plan: what the cache is for; every other plan is refused when it runs.
        seed: of the noises. calibrate: noises on which each way of leaving something out is measured; 32 more choose
            among the schedules, and 100 more bound the deviation.
        seconds: stop measuring after so long, and go by what is known then.
        measure: what is to be little: "flops" (floating-point operations) or "seconds" on this machine.
        data: where the conditions come from, row by row, as in `fs.accelerate`.
        folder: keeps what was measured, to go on from.

    Raises:
        ValueError: neither a method nor an error, an unknown method or option, a model that the method
            refuses; an error that is not above 0, no plan with a table, a cached model.
    """
    if method is None and error is None:
        raise ValueError("give a method, as 'deepcache', or the error to find a cache for, with the plan")
    if error is None:
        if plan is not None or folder is not None:
            raise ValueError("a plan and a folder go with error=..., which calibrates for the plan")
        return made("cache", str(method), skip=1, **options)(model)
    if method is not None:
        card(method, "cache")
        return find_threshold(model, method, error, plan, seed=seed, calibrate=calibrate, data=data, **options)
    if options:
        raise ValueError(f"options are a method's, and error=... has none: leave {', '.join(options)} out")
    return find_budget(
        model, error, plan, seed=seed, calibrate=calibrate, seconds=seconds, measure=measure, data=data, folder=folder
    )
