"""Claims of forecast evaluations: how near a plan that leaves some out stays to its own whole run, and their order."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, Run, experiment, over_seeds, slow, thrice, tolerance
from claims.common import F64, frechet, gap, plan
from claims.parts import VP, Denoiser, Noise, Plan, Process
from claims.problems import smooth, spread_grid
from fewstep.caching.ab_cache import ab_cache
from fewstep.core.record import record
from fewstep.core.trace import Trace, Value
from fewstep.data.digits import load as load_digits
from fewstep.guidance.guide import guide
from fewstep.hub.models import load as load_model
from fewstep.searching.problem import conditions

N, DRAWN = 64, 360
SCALE = 3.0
UNIT = "relative difference from the whole run"


@dataclass(frozen=True)
class Setting:
    """A model ("digits", "shapes", or "guided" digits), a solver and its steps, and how evaluations are left out."""

    model: str
    solver: str
    steps: int
    every: int = 2
    order: int = 3

    def cached(self, made: Plan, order: int | None = None, coordinate: str = "own") -> Plan:
        return ab_cache(made, self.every, order or self.order, coordinate, _model(self.model).data_std)

    @property
    def about(self) -> str:
        what = f"every {self.every}, order {self.order} in own: {math.ceil(self.steps / self.every)} evaluations"
        where = {"guided": f"embedded digits guided by {SCALE:g}", "shapes": "embedded shapes without captions"}
        where["captioned"] = "embedded shapes with captions"
        return f"{self.solver}, {self.steps} steps, {what}, {where.get(self.model, 'embedded digits')}, {N} noises"


@functools.cache
def _model(name: str) -> Denoiser:
    if name == "guided":
        return guide(load_model("digits"), "cfg", scale=SCALE)
    return load_model("shapes" if name == "captioned" else name)


def _run(name: str, made: Plan, seed: int, n: int = N) -> Tensor:
    """Samples from fresh noises, digits of all classes in turn; noise of the steps, where there is any, is the same."""
    model = _model(name)
    condition: dict[str, Any] = {} if name == "shapes" else {"label": torch.arange(n) % 10}
    if name == "captioned":
        condition = dict(conditions(model, None, 10_000 + torch.arange(n)))
    return made(model, Noise(seed).normal(0, (n, *(model.shape or ()))), seed=seed, **condition)


@functools.cache
def _whole(on: Setting, seed: int) -> Tensor:
    return _run(on.model, plan(_model(on.model).process, on.solver, on.steps), seed)


@experiment
def _deviation(seed: int, on: Setting, against: str, steps: int = 0, share: float = 1.0) -> Outcome:
    """Against "reuse", "order 1", or another solver in `steps` steps, or as many as the evaluations left; `share` of
    theirs is to be reached."""
    process, whole = _model(on.model).process, _whole(on, seed)
    made = plan(process, on.solver, on.steps)
    cached = on.cached(made)
    if against == "reuse":
        other, words = on.cached(made, 1, "eps"), "the last eps reused at the same evaluations"
    elif against == "order 1":
        other, words = on.cached(made, 1), "order 1 at the same evaluations"
    else:
        other = plan(process, against, steps or cached.nfe)
        words = f"{against}, {other.nfe} evaluations, from the same run of {on.steps} steps"
    ours, theirs = (gap(_run(on.model, made, seed), whole) for made in (cached, other))
    return Outcome(ours, share * theirs, f"{share:g} of {words}" if share != 1 else words, on.about, unit=UNIT)


@functools.cache
def _distance(what: str, seed: int) -> float:
    """The Frechet distance of ddpm's digits from the data: the whole run of 50 steps, it cached, or 25 steps."""
    made = plan(_model("digits").process, "ddpm", 25 if what == "fewer" else 50)
    made = ab_cache(made, order=1, data_std=_model("digits").data_std) if what == "cached" else made
    real = torch.cat([load_digits(split)[0] for split in ("train", "validation")])
    return frechet(_run("digits", made, seed, DRAWN), real, "digits").value


def _drawn(other: str, words: str) -> Run:
    about = f"ddpm, 50 steps, every 2, order 1 in own, 25 evaluations, embedded digits, {DRAWN} samples"
    unit = "Frechet distance in the classifier's features"
    return over_seeds(lambda seed: [_distance(what, seed) for what in ("cached", other)], words, about, unit=unit)


def _last_answer(trace: Trace, process: Process, times: list[float]) -> Value:
    """ddim's path to the last time, and what the network says of x0 there."""
    x = trace.start()
    for a, b in pairwise(times):
        ratio = process.alpha(b) / process.alpha(a)
        x = x * ratio + trace.evaluate(x, a).eps * (process.sigma(b) - process.sigma(a) * ratio)
    return trace.evaluate(x, times[-1]).x0


@experiment
def _slope(seed: int, order: int) -> Outcome:
    """The error of one skipped answer at a fixed time, from the state of the whole run, as steps are halved."""
    process, noise = VP(), Noise(seed).normal(0, (64, 2), "cpu", F64)
    errors = []
    for n in (96, 192):
        made = record(_last_answer, process, spread_grid(process, n), {}, {})
        cached = ab_cache(made, order=order, skipped=[n])
        errors.append(
            float((cached(smooth(process), noise, dtype=F64) - made(smooth(process), noise, dtype=F64)).norm())
        )
    measured = math.log2(errors[0] / errors[1])
    about = f"order {order} measures {measured:.2f}; 96 and 192 steps, smooth 5-component mixture, vp, 64 noises"
    return tolerance(abs(measured - order), 0.2, about, "|measured order - stated order|")


DDIM, THIRDS = Setting("digits", "ddim", 50), Setting("digits", "ddim", 50, 3)
MULTI, GUIDED = Setting("digits", "dpmpp-2m", 20), Setting("guided", "ddim", 20)
SHAPES, NOISY = Setting("shapes", "ddim", 50), Setting("digits", "ddpm", 50, order=1)
GAPS = Setting("digits", "ddim", 20, 4)

CLAIMS = (
    *(Claim("ab-cache", f"the error of a skipped answer falls with the power {order} of the step at order {order}",
            _slope(order)) for order in (1, 2, 3)),
    slow("ab-cache", "half of ddim's 50 evaluations deviate less than a fifth as much as 25 steps",
         thrice(_deviation(DDIM, "ddim", share=0.2))),
    slow("ab-cache", "half of ddim's 50 evaluations deviate less than with eps reused",
         thrice(_deviation(DDIM, "reuse"))),
    slow("ab-cache", "half of ddim's 50 evaluations are nearer to its run than dpmpp-3m in as many",
         thrice(_deviation(DDIM, "dpmpp-3m"))),
    slow("ab-cache", "a third of ddim's 50 evaluations deviates less than a fifth as much as 17 steps",
         thrice(_deviation(THIRDS, "ddim", share=0.2))),
    slow("ab-cache", "half of dpmpp-2m's 20 evaluations deviate less than 10 steps",
         thrice(_deviation(MULTI, "dpmpp-2m"))),
    slow("ab-cache", "half of guided ddim's 20 evaluations deviate less than 10 steps",
         thrice(_deviation(GUIDED, "ddim"))),
    slow("ab-cache", "half of guided ddim's 20 evaluations deviate less than 14 steps",
         thrice(_deviation(GUIDED, "ddim", 14))),
    slow("ab-cache", "half of ddim's 50 evaluations deviate less than a fifth as much as 25 steps on shapes",
         thrice(_deviation(SHAPES, "ddim", share=0.2))),
    slow("ab-cache", "half of ddim's 50 evaluations deviate less than with eps reused on shapes",
         thrice(_deviation(SHAPES, "reuse"))),
    slow("ab-cache", "half of ddim's 50 evaluations deviate less than a fifth as much as 25 steps on captioned scenes",
         thrice(_deviation(Setting("captioned", "ddim", 50), "ddim", share=0.2))),
    slow("ab-cache", "order 1 stays by ddpm's run of 50 steps where 25 steps make another picture",
         thrice(_deviation(NOISY, "ddpm"))),
    slow("ab-cache", "order 3 stays nearer to ddpm's run than order 1",
         thrice(_deviation(Setting("digits", "ddpm", 50), "order 1"))),
    slow("ab-cache", "half of ddpm's 50 evaluations come closer to the data than 25 steps",
         _drawn("fewer", "ddpm, 25 steps")),
    slow("ab-cache", "half of ddpm's 50 evaluations come as close to the data as all of them",
         _drawn("whole", "ddpm, 50 steps, all evaluations")),
    slow("ab-cache", "order 3 deviates less than order 1 over gaps of four in 20 steps",
         thrice(_deviation(GAPS, "order 1"))),
    slow("ab-cache", "order 3 stays nearer to ddpm's run than order 1 over gaps of four",
         thrice(_deviation(Setting("digits", "ddpm", 50, 4), "order 1")), seed=10),
)  # fmt: skip
