"""Claims of fewstep/training/draws.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from claims.common import F64, Claim, Flow, Outcome, arms
from claims.trained import NetworkDenoiser, NoiseLevels, Objective, UNet, fit, fresh
from fewstep.data.digits import load
from fewstep.training.draws import Draws

STEPS, BATCH, SHARE = 500, 64, 0.1


@torch.no_grad()
def _held_out(model: NetworkDenoiser) -> float:
    """Mean loss of the 360 held-out digits, each at eight noise levels spread evenly, under fixed noise."""
    images, generator = load("validation")[0].repeat(8, 1, 1, 1), torch.Generator().manual_seed(0)
    eps = torch.randn(images.shape, generator=generator)
    shares = (torch.arange(len(images), dtype=F64) + 0.5) / len(images)
    t = NoiseLevels(model.process).quantile(shares[torch.randperm(len(images), generator=generator)])
    return float(Objective(model)(images, eps, t, {}).mean())


def _rows(draws: Draws, images: Tensor) -> Callable[[int, torch.Generator], tuple[Tensor, Mapping[str, Tensor]]]:
    seen = 0

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        nonlocal seen
        rows = draws.rows(seen, count)
        seen += count
        return images[rows], {}

    return draw


def _loss(arm: str, seed: int) -> float:
    """Of a small unet trained on a fresh tenth of the digits every round, or on one "fixed" tenth."""
    images = load("train")[0]
    draws = Draws(seed, len(images), SHARE)
    if arm == "fixed":
        images = images[draws.rows(0, round(SHARE * len(images)))]  # the first round's share, for good
        draws = Draws(seed, len(images))
    model = NetworkDenoiser(fresh(UNet, seed, width=(16, 32), classes=None), Flow(), "velocity", shape=(1, 8, 8))
    return _held_out(fit(model, _rows(draws, images), steps=STEPS, batch=BATCH, lr=2e-3, seed=seed))


def _rs2(seed: int) -> Outcome:
    about = f"unet on digits, {STEPS} steps of {BATCH}, a tenth of the data a round"
    return arms(seed, _loss, "fresh", "fixed", "one fixed tenth", about, unit="held-out loss")


CLAIMS = (Claim("rs2", "a fresh tenth of the data every round beats a fixed tenth", _rs2, quick=False),)
