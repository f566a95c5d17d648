"""What claims about caches share: a model, a plan and noises, the whole run, and fewer steps of equal cost."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from claims.common import Denoiser, Noise, Plan, gap, plan
from fewstep.caching.common import Cached
from fewstep.caching.parts import Part
from fewstep.caching.recipe import Recipe
from fewstep.hub.models import load

N = 64
UNIT = "relative difference from the whole run"
NAMES = {"digits": "embedded digits", "digits-dit": "embedded transformer of digits"}


@functools.cache
def model_of(name: str) -> Denoiser:
    return load(name)


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
        return f"{self.solver}, {self.steps} steps, {NAMES[self.model]}, {N} noises"

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
