"""The cosine schedule in continuous time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.process import Process

METHODS = (
    Method(
        "cosine",
        paper="Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021)",
        arxiv="2102.09672",
        claim="alpha falls as a cosine of time; alpha^2 + sigma^2 = 1",
        use="Cosine",
    ),
)


@dataclass(frozen=True)
class Cosine(Process):
    """`alpha(t) = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s))`, `sigma^2 = 1 - alpha^2` (eq. 17).

    With `theta = pi/2 (t + s)/(1 + s)` and `theta0` its value at t = 0,
    `sigma^2 = sin(theta - theta0) sin(theta + theta0) / cos(theta0)^2`, which does not cancel at small t.
    `t_max = 1` starts at alpha = 0; the default stops just before, at log-SNR about -4.8.
    """

    name = "cosine"
    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946
    t_zero = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.s < math.inf or not 0 < self.t_min < self.t_max <= 1:
            raise ValueError(
                f"cosine needs s >= 0 and 0 < t_min < t_max <= 1, got {self.s}, {self.t_min}, {self.t_max}"
            )

    @property
    def _rate(self) -> float:
        return 0.5 * math.pi / (1 + self.s)

    @property
    def _theta0(self) -> float:
        return self._rate * self.s

    def _alpha(self, t: Tensor) -> Tensor:
        # cos(theta) = sin(pi/2 - theta), exact where alpha reaches 0 at t = 1.
        return torch.sin(self._rate * (1 - t)) / math.cos(self._theta0)

    def _sigma(self, t: Tensor) -> Tensor:
        return (torch.sin(self._rate * t) * torch.sin(self._rate * t + 2 * self._theta0)).sqrt() / math.cos(
            self._theta0
        )

    def _dalpha(self, t: Tensor) -> Tensor:
        return -self._rate * torch.cos(self._rate * (1 - t)) / math.cos(self._theta0)

    def _dsigma(self, t: Tensor) -> Tensor:
        return -self._alpha(t) * self._dalpha(t) / self._sigma(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        # alpha = sigmoid(2 log_snr)^(1/2); sin(theta)^2 = sigma^2 cos(theta0)^2 + sin(theta0)^2 (no cancellation).
        cosine = torch.sigmoid(2 * log_snr).sqrt() * math.cos(self._theta0)
        sine = (torch.sigmoid(-2 * log_snr) * math.cos(self._theta0) ** 2 + math.sin(self._theta0) ** 2).sqrt()
        return torch.atan2(sine, cosine) / self._rate - self.s
