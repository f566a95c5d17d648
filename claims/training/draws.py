"""Claims of fewstep/training/draws.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, over_seeds
from claims.transports import SEEDS, fresh
from fewstep.data.digits import load
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.unet import UNet
from fewstep.processes.flow import Flow
from fewstep.training.draws import Draws
from fewstep.training.fit import fit
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.objective import Objective

STEPS, BATCH, SHARE = 500, 64, 0.1


@torch.no_grad()
def _held_out(model: NetworkDenoiser) -> float:
    """Mean loss of the 360 held-out digits, each at eight noise levels spread evenly, under fixed noise."""
    images = load("validation")[0].repeat(8, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(images.shape, generator=generator)
    shares = (torch.arange(len(images), dtype=torch.float64) + 0.5) / len(images)
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


def _run(seed: int) -> tuple[float, float]:
    images = load("train")[0]
    n = len(images)
    fixed = images[Draws(seed, n, SHARE).rows(0, round(SHARE * n))]  # the first round's share, for good
    losses = []
    for data, draws in ((images, Draws(seed, n, SHARE)), (fixed, Draws(seed, len(fixed)))):
        network = fresh(UNet, seed, width=(16, 32), classes=None)
        model = NetworkDenoiser(network, Flow(), "velocity", shape=(1, 8, 8))
        losses.append(_held_out(fit(model, _rows(draws, data), steps=STEPS, batch=BATCH, lr=2e-3, seed=seed)))
    return losses[0], losses[1]


def _rs2(seed: int) -> Outcome:
    return over_seeds(
        _run,
        [seed + s for s in SEEDS],
        "one fixed tenth",
        f"unet on digits, {STEPS} steps of {BATCH}, a tenth of the data a round",
        unit="held-out loss",
    )


CLAIMS = (Claim("rs2", "a fresh tenth of the data every round beats a fixed tenth", _rs2, quick=False),)
