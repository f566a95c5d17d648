"""Claims of fewstep/sampling/thresholding.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from claims.common import Claim, Denoiser, Noise, Outcome, Prediction, compared, plan, sliced_wasserstein
from fewstep.data.digits import load as digits
from fewstep.hub.models import load
from fewstep.sampling.thresholding import Thresholded

WEIGHT, NFE, N = 7.5, 10, 256


class _Guided(Denoiser):
    """Classifier-free guidance of a network with labels."""

    def __init__(self, base: Denoiser):
        super().__init__()
        self.base, self.process, self.shape = base, base.process, base.shape
        self.conditions, self.value_range = base.conditions, base.value_range

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        empty = {name: torch.full_like(value, 10) for name, value in condition.items()}
        wanted, plain = self.base(x, t, **condition).x0, self.base(x, t, **empty).x0
        return Prediction(plain + WEIGHT * (wanted - plain), "x0", x, t, self.process)


def _compared(seed: int, figure: Callable[[Tensor], float], unit: str) -> Outcome:
    """A figure of guided samples, with thresholding and without."""
    guided = _Guided(load("digits"))
    noise, label = Noise(seed).normal(0, (N, 1, 8, 8)), torch.arange(N) % 10
    made = plan(guided.process, "dpmpp-2m", timesteps="log-snr", nfe=NFE)
    figures = [figure(made(model, noise, label=label)) for model in (Thresholded(guided), guided)]
    about = f"percentile 0.995; embedded digits, guidance {WEIGHT:g}, dpmpp-2m, {NFE} evaluations, times log-snr, {N}"
    about += " samples"
    return compared(figures, "no thresholding", about, unit=unit)


def _outside(seed: int) -> Outcome:
    return _compared(seed, lambda x: float((x.abs() > 1 + 1e-4).double().mean()), "share of pixels out of range")


def _nearer(seed: int) -> Outcome:
    images, labels = digits("all")
    pick = torch.cat([torch.nonzero(labels == k)[: N // 10 + 1, 0] for k in range(10)])[:N]
    unit = "sliced Wasserstein distance to digits"
    return _compared(seed, lambda x: sliced_wasserstein(x, images[pick], projections=64).value, unit)


CLAIMS = (
    Claim("dynamic-thresholding", "guided samples stay in the data's range", _outside, quick=False),
    Claim("dynamic-thresholding", "guided samples are nearer to the data's distribution", _nearer, quick=False),
)
