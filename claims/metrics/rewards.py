"""Claims of rewards: that steering to each of them gets more of it than the best of as many samples."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, compared, experiment, slow
from claims.parts import Noise
from fewstep.data import shapes
from fewstep.data.digits import load as load_digits
from fewstep.guidance.steer import steer
from fewstep.hub.models import load as load_model
from fewstep.metrics.accuracy import class_accuracy
from fewstep.metrics.rewards import caption, ink, likeness, reward, symmetry
from fewstep.sampling.build import plan

DIGITS, STEPS, PARTICLES = 60, 10, 8
SCENES, SCENE_STEPS, SCENE_PARTICLES = 16, 12, 16
BEST = f"best of {PARTICLES}"


def _asked() -> list[str]:
    return shapes.captions(torch.arange(shapes.N_TRAIN, shapes.N_TRAIN + SCENES))


@functools.cache
def _template() -> Tensor:
    return load_digits("validation")[0][0]


def _drawn(model: str, n: int, steps: int, particles: int, seed: int, potential: str, aim: Any, strength: float) -> Any:
    own = load_model(model)
    made = plan(own.process, "dpmpp-2m-sde", steps)
    steered = steer(made, "fk", reward=aim, strength=strength, particles=particles, potential=potential)
    return steered(own, Noise(seed).normal(0, (n, *(own.shape or ()))), seed=seed)


def _figure(name: str, x: Tensor) -> float:
    """What a reward's samples are judged by."""
    if name == "digit":
        return class_accuracy(x, torch.arange(len(x)) % 10).value
    return float({"ink": ink, "symmetry": symmetry}.get(name, lambda x: likeness(x, _template()))(x).mean())


@experiment
def _digits(seed: int, name: str, strength: float, unit: str) -> Outcome:
    options = {"digit": {"label": [i % 10 for i in range(DIGITS)]}, "likeness": {"template": _template()}}
    aim = reward(name, **options.get(name, {}))
    figures = [
        _figure(name, _drawn("digits", DIGITS, STEPS, PARTICLES, seed, potential, aim, strength))
        for potential in ("difference", "best")
    ]
    about = f"digits, {DIGITS} samples without labels, fk, {PARTICLES} particles, {STEPS} steps of dpmpp-2m-sde"
    return compared(figures, BEST, f"{about}, strength {strength:g}", "high", unit)


@experiment
def _captions(seed: int, name: str, strength: float) -> Outcome:
    aim, asked = reward(name, text=_asked()), _asked()
    figures = [
        float(caption(_drawn("shapes", SCENES, SCENE_STEPS, SCENE_PARTICLES, seed, way, aim, strength), asked).mean())
        for way in ("difference", "best")
    ]
    about = f"shapes without captions, {SCENES} captions, fk, {SCENE_PARTICLES} particles, {SCENE_STEPS} steps"
    return compared(
        figures, f"best of {SCENE_PARTICLES}", f"{about}, strength {strength:g}", "high", "share of attributes right"
    )


CLAIMS: tuple[Claim, ...] = (
    slow("ink", "steering to it gets more ink than the best of as many", _digits("ink", 60.0, "ink")),
    slow("symmetry", "steering to it gets more symmetry than the best of as many",
         _digits("symmetry", 20.0, "symmetry")),
    slow("likeness", "steering to it gets nearer to a template than the best of as many",
         _digits("likeness", 20.0, "likeness")),
    slow("digit", "steering to it shows the class more often than the best of as many",
         _digits("digit", 2.0, "class accuracy")),
    slow("soft-caption", "steering to it shows more of a caption than the best of as many",
         _captions("soft-caption", 30.0)),
    slow("caption", "without a gradient too it shows more of a caption than the best of as many",
         _captions("caption", 20.0)),
)  # fmt: skip
