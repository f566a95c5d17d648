"""Variance-exploding processes: Song's geometric one, and EDM's, whose time is sigma itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.process import Process

METHODS = (
    Method(
        "ve",
        paper="Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)",
        arxiv="2011.13456",
        claim="alpha = 1, sigma geometric in t",
        use="VE",
    ),
    Method(
        "edm",
        paper="Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)",
        arxiv="2206.00364",
        claim="alpha = 1, sigma = t: straight towards the data at small and large noise",
        use="EDM",
    ),
)


@dataclass(frozen=True)
class VE(Process):
    """`alpha = 1`, `sigma(t) = sigma_min (sigma_max / sigma_min)^t`, t in [0, 1].

    The formula never reaches sigma = 0, so the clean sample has a separate time, `t_zero = -1`.
    """

    name = "ve"
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min = 0.0
    t_max = 1.0
    t_zero = -1.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"ve needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.where(t <= self.t_zero, 0.0, self.sigma_min * (self._rate * t).exp())

    def _log_snr(self, t: Tensor) -> Tensor:
        return torch.where(t <= self.t_zero, math.inf, -math.log(self.sigma_min) - self._rate * t)

    def _dalpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _dsigma(self, t: Tensor) -> Tensor:
        return self._rate * self._sigma(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return ((-log_snr - math.log(self.sigma_min)) / self._rate).clamp_min(self.t_zero)


@dataclass(frozen=True)
class EDM(Process):
    """`alpha = 1`, `sigma(t) = t`, from `sigma_max` down to `sigma_min` (Karras et al., Table 1)."""

    name = "edm"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    t_zero = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"edm needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.sigma_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.sigma_max

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def _log_snr(self, t: Tensor) -> Tensor:
        return -t.log()

    def _dalpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _dsigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return (-log_snr).exp()
