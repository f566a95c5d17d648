"""What the claims of caches share: fresh noises on the embedded models, and what a run of them costs."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from claims.common import plan
from claims.parts import Denoiser, Noise, Plan
from fewstep.core.sampler import Result
from fewstep.guidance.guide import guide
from fewstep.hub.models import load
from fewstep.searching.problem import conditions

UNIT = "relative deviation from the whole run"
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
