"""A curriculum on captioned clips that move: red circles first, or all shapes from the start."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from claims.claim import arms, slow
from claims.trained import fresh
from fewstep.data.moving import DIRECTIONS, FRAMES, LENGTH, SHAPE, SIDE, TEXT
from fewstep.data.open import open_built_in
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.temporal import TemporalUNet
from fewstep.processes.ve import EDM
from fewstep.training.curriculum import Curriculum
from fewstep.training.draws import Draws
from fewstep.training.fit import fit
from fewstep.training.noise_levels import NoiseLevels

STEPS, EASY, BATCH, RATE = 900, 500, 24, 2e-3
HELD, SIGMA = 192, 20.0  # clips, and the noise at which the path is decided
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


@functools.cache
def _held() -> tuple[Tensor, Tensor]:
    clips, named = open_built_in("moving", split="validation").batch(torch.arange(HELD))
    return clips, named["text"]


@functools.cache
def _trained(curriculum: bool, seed: int) -> NetworkDenoiser:
    data = open_built_in("moving", split="train")
    draws = Curriculum(seed, data, "red circle", EASY * BATCH) if curriculum else Draws(seed, len(data))
    seen = 0

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal seen
        rows, seen = draws.rows(seen, count), seen + count
        return data.batch(rows)

    network = fresh(
        TemporalUNet, seed, channels=3, size=SIDE, width=(32, 64), attention=(4,), classes=None, patch=2, embedding=96,
        vocabulary=len(TEXT.vocabulary), captions=LENGTH, places=True, frames=FRAMES,
    )  # fmt: skip
    process = EDM()
    model = NetworkDenoiser(network, process, "x0", SHAPE, {"text": TEXT}, "edm", data_std=data.std())
    levels = NoiseLevels(process, "log-normal", 1.5, 1.2)
    return fit(model, draw, steps=STEPS, batch=BATCH, lr=RATE, levels=levels, seed=seed)


@torch.no_grad()
def _loss(curriculum: bool, seed: int, turned: bool = False) -> float:
    """The squared error of x0 on held-out clips; turned: with the opposite direction in their captions."""
    clips, tokens = _held()
    if turned:
        first = {word: TEXT.tokens(word)[0] for word in DIRECTIONS}
        tokens = functools.reduce(
            lambda made, way: torch.where(_held()[1] == first[way], first[OPPOSITE[way]], made), DIRECTIONS, tokens
        )
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(seed))
    model = _trained(curriculum, seed)
    parts = zip(clips.split(32), noise.split(32), tokens.split(32), strict=True)
    errors = [(model(x + SIGMA * eps, torch.tensor(SIGMA), text=text).x0 - x).square() for x, eps, text in parts]
    return float(torch.cat(errors).mean())


def _read(curriculum: bool, seed: int) -> float:
    return _loss(curriculum, seed, turned=True) - _loss(curriculum, seed)


ABOUT = f"temporal UNet on moving shapes, {STEPS} steps of {BATCH}, {HELD} held-out clips at sigma {SIGMA:g}"

CLAIMS = (
    slow("curriculum", "red circles first, the clips of all shapes have the lower held-out loss",
         arms(_loss, True, False, "all shapes from the start", ABOUT, unit="held-out loss")),
    slow("curriculum", "the words for directions are read",
         arms(_read, True, False, "all shapes from the start", ABOUT, "high",
              "what the opposite direction adds to the loss")),
)  # fmt: skip
