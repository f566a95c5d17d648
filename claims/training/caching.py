"""Claims of what is trained for caches."""

from __future__ import annotations

from claims.caches import DIFFERENCE, Setting, at_most, cost, evenly
from claims.common import Outcome, experiment, slow, thrice
from fewstep.caching.block_caching import block_caching
from fewstep.caching.block_changes import calibrate
from fewstep.caching.branches import branches
from fewstep.training.scale_shift import fit_scale_shift

TRAINED, STEPS, RATE = 128, 100, 0.02


@experiment
def _scaled(seed: int, on: Setting) -> Outcome:
    """The same schedule with scales and shifts and without."""
    noise, condition = on.noises(seed + 100, 32)
    measured = calibrate(on.denoiser, on.made, noise, **condition)
    limit = cost(evenly(on.denoiser, branches(on.denoiser), 2), on.steps)
    plain = at_most(lambda delta: block_caching(on.denoiser, **measured, delta=delta), on.steps, limit)
    noise, condition = on.noises(seed + 200, TRAINED)
    found = fit_scale_shift(plain, on.made, noise, steps=STEPS, lr=RATE, seed=seed, **condition)
    about = f"{cost(plain, on.steps):.1f} whole evaluations, {STEPS} steps of training on {TRAINED} noises, {on.about}"
    figures = on.deviation(seed, found.model), on.deviation(seed, plain)
    return Outcome(*figures, "the same schedule without", about, unit=DIFFERENCE)


CLAIMS = tuple(
    slow("scale-shift", f"block caching with trained scales and shifts deviates less on {what}",
         thrice(_scaled(Setting(model))))
    for model, what in (("digits", "digits"), ("digits-dit", "the transformer of digits"))
)  # fmt: skip
