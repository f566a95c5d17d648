"""What the claims of caches share: fresh noises on the embedded models, and what a run of them costs."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from claims.common import gap, plan
from claims.parts import Denoiser, Noise, Plan
from fewstep.caching.common import Cached
from fewstep.caching.parts import Part
from fewstep.caching.recipe import Recipe
from fewstep.core.sampler import Result
from fewstep.guidance.guide import guide
from fewstep.hub.models import load
from fewstep.searching.problem import conditions

UNIT = "relative deviation from the whole run"
DIFFERENCE = "relative difference from the whole run"  # the same, as the claims of settings call it
N = 64
WHERE = {"digits": "embedded digits", "digits-dit": "embedded transformer of digits"}
SCALES = {"digits guided": 3.0, "digits-dit guided": 3.0, "shapes guided": 2.0}
ASKED = "shapes asked"
CLASSES = ("digits", "digits-dit", "digits guided", "digits-dit guided")


@functools.cache
def model_of(name: str) -> Denoiser:
    """An embedded model, or a guided one."""
    base = load(name.split()[0])
    return guide(base, "cfg", scale=SCALES[name]) if name in SCALES else base


def asked(name: str, n: int) -> dict[str, Any]:
    """Digits of all classes in turn; shapes without captions, with those that a search takes ("asked"), or, guided,
    with those of held-out scenes."""
    if name in CLASSES:
        return {"label": torch.arange(n) % 10}
    if name == ASKED:
        return dict(conditions(model_of(name), None, 10_000 + torch.arange(n)))
    if name in SCALES:
        from fewstep.data import shapes

        return {"text": list(shapes.captions(torch.arange(n), "validation"))}
    return {}


@functools.cache
def fresh(name: str, seed: int, n: int) -> Tensor:
    return Noise(seed).normal(0, (n, *(model_of(name).shape or ())))


@functools.cache
def steps_of(name: str, solver: str, steps: int) -> Plan:
    return plan(model_of(name).process, solver, steps)


@functools.cache
def whole(name: str, solver: str, steps: int, seed: int, n: int) -> Tensor:
    """The samples of a plan in so many steps, by the whole model."""
    return run(model_of(name), name, steps_of(name, solver, steps), seed, n).samples


def run(model: Denoiser, name: str, made: Plan, seed: int, n: int) -> Result:
    """The run of a model, cached or whole, on fresh noises of a named one."""
    return made.run(model, fresh(name, seed, n), seed=seed, **asked(name, n))


def fewer(name: str, solver: str, cost: float, seed: int, n: int) -> tuple[int, Tensor]:
    """Samples by the whole model in as many steps of the solver as cost no less."""
    steps = math.ceil(cost - 1e-6)
    return steps, whole(name, solver, steps, seed, n)


def words(name: str, n: int) -> str:
    """What is measured on."""
    scale = f" guided at scale {SCALES[name]:g}" if name in SCALES else " with captions" if name == ASKED else ""
    return f"embedded {name.split()[0]}{scale}, {n} fresh noises"


@dataclass(frozen=True)
class Setting:
    """An embedded model, a solver and its steps."""

    model: str = "digits"
    solver: str = "ddim"
    steps: int = 20

    @property
    def denoiser(self) -> Denoiser:
        return model_of(self.model)

    @property
    def made(self) -> Plan:
        return plan(self.denoiser.process, self.solver, self.steps)

    @property
    def about(self) -> str:
        return f"{self.solver}, {self.steps} steps, {WHERE[self.model]}, {N} noises"

    def noises(self, seed: int, n: int) -> tuple[Tensor, dict[str, Any]]:
        """Noises and classes in turn."""
        return Noise(seed).normal(0, (n, *(self.denoiser.shape or ()))), {"label": torch.arange(n) % 10}

    def run(self, seed: int, model: Denoiser | None = None, made: Plan | None = None, n: int = N) -> Tensor:
        noise, condition = self.noises(seed, n)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of short plans, which are what is measured
            return (made or self.made)(model or self.denoiser, noise, **condition)

    def deviation(self, seed: int, model: Denoiser | None = None, made: Plan | None = None) -> float:
        """Of a cached model, or of another plan, from the whole run."""
        return gap(self.run(seed, model, made), _whole(self, seed))

    def fewer(self, cost: float) -> Plan:
        """The solver in as many steps as cost no less, in whole evaluations."""
        return plan(self.denoiser.process, self.solver, math.ceil(cost - 1e-9))


@functools.cache
def _whole(on: Setting, seed: int) -> Tensor:
    return on.run(seed)


def cost(cached: Cached, evaluations: int) -> float:
    """Of a run, in whole evaluations, by floating-point operations, which parts that do not overlap save each alone."""
    if cached.recipe.never:
        return float(evaluations)
    saved = {name: 1 - cached.cost((name,)) for name in cached.recipe.parts}
    standing = [cached.recipe.schedule(n, evaluations) for n in range(1, evaluations)]
    return evaluations - sum(saved[name] for names in standing for name in names)


def evenly(model: Denoiser, parts: dict[str, Part], interval: int, order: int = 1) -> Cached:
    """All of these parts stand except at every `interval`-th evaluation."""
    recipe = Recipe(parts, lambda n, count: () if n % interval == 0 else tuple(parts), order)
    return Cached(model, recipe, ("deepcache", {"interval": interval}))


def at_most(make: Callable[[float], Cached], evaluations: int, limit: float, most: float = 4.0) -> Cached:
    """The cache of the least strength, by bisection, that costs no more than the limit."""
    low, high, saved = 0.0, most, dict[str, float]()
    for _ in range(20):
        middle = (low + high) / 2
        cached = make(middle)
        saved = saved or {name: 1 - cached.cost((name,)) for name in cached.recipe.parts}
        rows = () if cached.recipe.never else range(1, evaluations)
        spent = evaluations - sum(saved[name] for n in rows for name in cached.recipe.schedule(n, evaluations))
        low, high = (low, middle) if spent <= limit else (middle, high)
    return make(high)
