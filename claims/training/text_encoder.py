"""Claims of fewstep/training/text_encoder.py."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, over_seeds
from claims.tuning import chain
from fewstep.core.noise import Noise
from fewstep.data import shapes
from fewstep.data.captions import detokenize
from fewstep.denoisers.network import NetworkDenoiser
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
    found = tune_text_encoder(
        model,
        reward,
        words,
        chain(model, NFE),
        steps=STEPS,
        batch=BATCH,
        lr=LR,
        anchor=anchor,
        every=1000,
        fresh=BATCH,
        seed=seed,
    )
    assert isinstance(found.model, NetworkDenoiser)
    return found.model


@torch.no_grad()
def _pictures(model: NetworkDenoiser, captions: Sequence[str], seed: int) -> Tensor:
    noise = Noise(800 + seed).normal(0, (len(captions), *(model.shape or ())))
    return chain(model, NFE)(model, noise, text=list(captions))


def _held_out(seed: int) -> Outcome:
    """Share of validation captions whose pictures show all that was asked, with the encoder tuned and as it came."""
    captions = list(_captions("validation", SAMPLES))
    soft: list[float] = []

    def run(one: int) -> tuple[float, float]:
        right = []
        for model in (_tuned(_match, one, 0.1), load("shapes")):
            x = _pictures(model, captions, one)
            right.append(float(check(x, captions).full.float().mean()))
            soft.append(float(soft_scores(x, captions).mean()))
        return right[0], right[1]

    found = over_seeds(
        run,
        (seed, seed + 1, seed + 2),
        "the encoder as it came",
        f"shapes, {NFE} evaluations, {STEPS} steps of {BATCH} on other captions, verified on {SAMPLES} validation"
        " captions",
        better="high",
        unit="share of pictures right in all that was asked",
    )
    said = f"; the reward itself, tuned and not: {sum(soft[::2]) / 3:.3f} and {sum(soft[1::2]) / 3:.3f}"
    return Outcome(
        found.ours, found.theirs, found.against, found.conditions + said, found.better, found.unit, found.spread
    )


def _between(seed: int) -> Outcome:
    """Red minus blue of the pictures of encoders between one tuned to be bluer and one to be redder."""
    captions = list(_captions("validation", SAMPLES))
    blue, red = (_tuned(reward, seed, 0.0) for reward in (_bluer, _redder))
    colour = []
    for share in SHARES:
        x = _pictures(interpolate_encoders(blue, red, share), captions, seed)
        colour.append(float(_redder(x, x).mean()))
    return Outcome(
        min(b - a for a, b in zip(colour, colour[1:], strict=False)),
        0.0,
        "no change",
        f"shapes, {NFE} evaluations, encoders {', '.join(map(str, SHARES))} of the way from one tuned to be bluer to"
        f" one tuned to be redder; red minus blue is {', '.join(f'{value:.4f}' for value in colour)}",
        better="high",
        unit="smallest rise between neighbours",
    )


CLAIMS = (
    Claim("textcraftor", "tuned alone, the encoder makes more of new captions come out right", _held_out, quick=False),
    Claim("textcraftor", "between two tuned encoders the attribute moves one way", _between, quick=False),
)
