"""Claims of fewstep/training/short_chain.py."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from claims.common import Claim, Noise, Outcome, arms, compared, experiment
from claims.trained import NetworkDenoiser
from claims.tuning import chain, in_turn, labels, peak_bytes, samples
from fewstep.hub.models import load
from fewstep.training.lora import add_lora, lora_parameters
from fewstep.training.reward import reward_samples, symmetry, tune
from fewstep.training.short_chain import short_chain

LONG, BATCH = 50, 16
# Steps for one budget of about 620 evaluations a sample, one with a gradient counted as three: 69 x 9 on chains of two
# and four, 12 x 52 through the last of fifty, 4 x 150 through all fifty.
BUDGET = {"short": 69, "truncated": 12, "full": 4}


def _reward(x: Tensor, **condition: Tensor) -> Tensor:
    return symmetry(x)


@torch.no_grad()
def _on_the_long_chain(model: NetworkDenoiser, seed: int) -> float:
    return float(symmetry(samples(model, chain(model, LONG), 100, 900 + seed, in_turn(100))).mean())


@functools.cache
def _tuned(way: str, seed: int) -> float:
    model = load("digits")
    options: dict[str, Any] = {"steps": BUDGET[way], "batch": BATCH, "lr": 1e-3, "conditions": labels, "seed": seed}
    options |= {"every": 1000, "fresh": 10, "segment": LONG}
    if way == "short":
        return _on_the_long_chain(short_chain(model, _reward, **options).model, seed)  # type: ignore[arg-type]
    adapted = add_lora(model, 4, seed=seed)
    tune(adapted, _reward, chain(model, LONG), method=way, parameters=lora_parameters(adapted), **options)
    return _on_the_long_chain(adapted, seed)


@experiment
def _against(seed: int, way: str, against: str) -> Outcome:
    about = f"digits, reward: left-right symmetry, adapters of rank 4, {BUDGET['short']} steps of {BATCH} on chains of"
    about += f" 2 and 4 evaluations: as many evaluations, one with a gradient counted as three; sampled with {LONG}"
    about += f" evaluations, untuned {_on_the_long_chain(load('digits'), seed):.3f}"
    against, unit = f"{against}, {BUDGET[way]} steps", "reward of 100 new samples"
    return arms(seed, _tuned, "short", way, against, about, better="high", unit=unit)


def _memory(seed: int) -> Outcome:
    """The most that one gradient of 16 samples holds: all of a short chain, all of a long one by segments."""
    adapted = add_lora(load("digits"), 4)
    noise, label = Noise(seed).normal(0, (BATCH, 1, 8, 8)), in_turn(BATCH)

    def held(nfe: int, method: str) -> float:
        def gradient() -> None:
            x = reward_samples(adapted, noise, chain(adapted, nfe), method, 1, label=label)
            torch.autograd.grad(symmetry(x).mean(), lora_parameters(adapted))

        return peak_bytes(gradient) / 1e6

    figures = held(4, "full"), held(LONG, "full")
    about = f"digits, one gradient of {BATCH} samples through 4 evaluations by segments of 2; through the last of"
    about += f" {LONG} alone {held(LONG, 'truncated'):.0f} MB"
    return compared(figures, f"all of {LONG} evaluations, also by segments", about, unit="peak of tensors in MB")


CLAIMS = (
    Claim("shortft", "raises the long chain's reward more than the gradient of its last step",
          _against("truncated", f"the last of {LONG} evaluations (DRaFT-1)"), quick=False),
    Claim("shortft", "raises the long chain's reward more than that chain's whole gradient",
          _against("full", f"all {LONG} evaluations"), quick=False),
    Claim("shortft", "a gradient holds less than the long chain's", _memory, quick=False),
)  # fmt: skip
