"""The variance-preserving diffusion with a linear beta, in continuous time, and its sub-VP sister."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.process import Process

METHODS = (
    Method(
        "vp",
        paper="Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)",
        arxiv="2011.13456",
        claim="alpha^2 + sigma^2 = 1, beta linear in t",
        use="VP",
    ),
    Method(
        "sub-vp",
        paper="Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)",
        arxiv="2011.13456",
        claim="sigma = 1 - alpha^2: less variance than VP at every time",
        use="SubVP",
    ),
)


@dataclass(frozen=True)
class VP(Process):
    """`dx = -beta(t)/2 x dt + sqrt(beta(t)) dw` with `beta(t) = beta_min + t (beta_max - beta_min)`, t in [0, 1].

    `log alpha = -t^2 (beta_max - beta_min)/4 - t beta_min/2`, `sigma^2 = 1 - alpha^2` (eq. 33).
    """

    name = "vp"
    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    t_zero = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(f"vp needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")
        if not 0 < self.t_min < self.t_max < math.inf:
            raise ValueError(f"vp needs 0 < t_min < t_max, got {self.t_min} and {self.t_max}")

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def _dlog_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * (self.beta_min + t * (self.beta_max - self.beta_min))

    def _alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def _sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def _log_snr(self, t: Tensor) -> Tensor:
        return -0.5 * torch.expm1(-2 * self._log_alpha(t)).log()

    def _dalpha(self, t: Tensor) -> Tensor:
        return self._alpha(t) * self._dlog_alpha(t)

    def _dsigma(self, t: Tensor) -> Tensor:
        return -self._alpha(t) * self._dalpha(t) / self._sigma(t)

    def _time_of(self, log_alpha: Tensor) -> Tensor:
        """The root of `t^2 (beta_max - beta_min)/2 + t beta_min = -2 log alpha`, without cancellation."""
        m = -2 * log_alpha
        return 2 * m / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * m).sqrt())

    def _time(self, log_snr: Tensor) -> Tensor:
        return self._time_of(-0.5 * torch.logaddexp(torch.zeros_like(log_snr), -2 * log_snr))


@dataclass(frozen=True)
class SubVP(VP):
    """The sub-VP SDE: VP's alpha with `sigma = 1 - alpha^2` (eq. 29)."""

    name = "sub-vp"

    def _sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self._log_alpha(t))

    def _log_snr(self, t: Tensor) -> Tensor:
        return self._log_alpha(t) - self._sigma(t).log()

    def _dsigma(self, t: Tensor) -> Tensor:
        return -2 * self._alpha(t) * self._dalpha(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        # (1 - alpha^2) / alpha = r = exp(-log_snr), so alpha = 2 / (r + sqrt(r^2 + 4)) and log alpha = -asinh(r / 2).
        return self._time_of(-torch.asinh(0.5 * (-log_snr).exp()))
