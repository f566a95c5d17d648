"""Claims of fewstep/training/text_encoder.py."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from claims.common import Claim, Noise, Outcome, arms
from claims.trained import NetworkDenoiser
from claims.tuning import chain
from fewstep.data import shapes
from fewstep.data.captions import detokenize
from fewstep.hub.models import load
from fewstep.metrics.shapes_reward import soft_scores
from fewstep.metrics.shapes_verifier import check
from fewstep.training.reward import Reward
from fewstep.training.text_encoder import interpolate_encoders, tune_text_encoder

STEPS, BATCH, NFE, SAMPLES, LR = 20, 12, 6, 96, 3e-4
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def _match(x: Tensor, text: Tensor) -> Tensor:
    """How well pictures show what the captions ask for."""
    return soft_scores(x, detokenize(text))


def _redder(x: Tensor, text: Tensor) -> Tensor:
    return (x[:, 0] - x[:, 2]).flatten(1).mean(1)


def _bluer(x: Tensor, text: Tensor) -> Tensor:
    return -_redder(x, text)


@functools.cache
def _captions(split: str, count: int) -> tuple[str, ...]:
    return tuple(shapes.captions(torch.arange(count), split))


def _tuned(reward: Reward, seed: int, anchor: float) -> NetworkDenoiser:
    model, words = load("shapes"), _captions("train", 512)
    options: dict[str, Any] = {"steps": STEPS, "batch": BATCH, "lr": LR, "every": 1000, "fresh": BATCH}
    found = tune_text_encoder(model, reward, words, chain(model, NFE), anchor=anchor, seed=seed, **options)
    assert isinstance(found.model, NetworkDenoiser)
    return found.model


@torch.no_grad()
def _pictures(model: NetworkDenoiser, captions: Sequence[str], seed: int) -> Tensor:
    noise = Noise(800 + seed).normal(0, (len(captions), *(model.shape or ())))
    return chain(model, NFE)(model, noise, text=list(captions))


def _held_out(seed: int) -> Outcome:
    """Share of validation captions whose pictures show all that was asked, with the encoder tuned and as it came."""
    captions = list(_captions("validation", SAMPLES))
    soft: dict[bool, list[float]] = {True: [], False: []}

    def figure(tuned: bool, s: int) -> float:
        x = _pictures(_tuned(_match, s, 0.1) if tuned else load("shapes"), captions, s)
        soft[tuned].append(float(soft_scores(x, captions).mean()))
        return float(check(x, captions).full.float().mean())

    about = f"shapes, {NFE} evaluations, {STEPS} steps of {BATCH} on other captions, verified on {SAMPLES} validation"
    about += " captions"
    unit = "share of pictures right in all that was asked"
    found = arms(seed, figure, True, False, "the encoder as it came", about, better="high", unit=unit)
    said = f"; the reward itself, tuned and not: {sum(soft[True]) / 3:.3f} and {sum(soft[False]) / 3:.3f}"
    return replace(found, conditions=found.conditions + said)


def _between(seed: int) -> Outcome:
    """Red minus blue of the pictures of encoders between one tuned to be bluer and one to be redder."""
    captions, colour = list(_captions("validation", SAMPLES)), []
    blue, red = (_tuned(reward, seed, 0.0) for reward in (_bluer, _redder))
    for share in SHARES:
        x = _pictures(interpolate_encoders(blue, red, share), captions, seed)
        colour.append(float(_redder(x, x).mean()))
    about = f"shapes, {NFE} evaluations, encoders {', '.join(map(str, SHARES))} of the way from one tuned to be bluer"
    about += f" to one tuned to be redder; red minus blue is {', '.join(f'{value:.4f}' for value in colour)}"
    rise = min(b - a for a, b in pairwise(colour))
    return Outcome(rise, 0.0, "no change", about, better="high", unit="smallest rise between neighbours")


CLAIMS = (
    Claim("textcraftor", "tuned alone, the encoder makes more of new captions come out right", _held_out, quick=False),
    Claim("textcraftor", "between two tuned encoders the attribute moves one way", _between, quick=False),
)
