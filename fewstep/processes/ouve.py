"""OUVE: the mean-reverting, variance-exploding diffusion of speech enhancement."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fewstep.core.methods import Method
from fewstep.processes.bridge import Bridge

METHODS = (
    Method(
        "ouve",
        paper="Speech Enhancement and Dereverberation with Diffusion-based Generative Models (Richter et al., 2023)",
        arxiv="2208.05830",
        claim="pulled towards the noisy recording while the noise grows geometrically",
        use="OUVE",
    ),
)


@dataclass(frozen=True)
class OUVE(Bridge):
    """`dx = gamma (y - x) dt + g dw`, `g = sigma_min r^t sqrt(2 log r)`, `r = sigma_max / sigma_min`, t in [0, 1]:

        x - y = e^(-gamma t) (x0 - y) + sigma eps,
        sigma^2 = sigma_min^2 (r^(2 t) - e^(-2 gamma t)) log(r) / (gamma + log(r)).

    At t = 1 a part `e^-gamma` of the residual is left, yet runs start from `y + sigma(1) eps`, as the paper's do.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max, gamma > 0 and 0 < t_min < 1.
    """

    name = "ouve"
    gamma: float = 1.5
    sigma_min: float = 0.05
    sigma_max: float = 0.5
    t_min: float = 0.03
    t_max = 1.0
    t_zero = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.sigma_min < self.sigma_max < math.inf and 0 < self.gamma < math.inf and 0 < self.t_min < 1):
            raise ValueError(
                "ouve needs 0 < sigma_min < sigma_max, gamma > 0 and 0 < t_min < 1,"
                f" got {self.sigma_min}, {self.sigma_max}, {self.gamma} and {self.t_min}"
            )

    @property
    def _growth(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    @property
    def _log_unit(self) -> float:
        """log of u in `sigma / alpha = u sqrt(e^(2 (gamma + log r) t) - 1)`."""
        return math.log(self.sigma_min) + 0.5 * math.log(self._growth / (self.gamma + self._growth))

    def _alpha(self, t: Tensor) -> Tensor:
        return (-self.gamma * t).exp()

    def _sigma(self, t: Tensor) -> Tensor:
        grown = torch.expm1(2 * (self.gamma + self._growth) * t).sqrt()
        return math.exp(self._log_unit) * (-self.gamma * t).exp() * grown

    def _dalpha(self, t: Tensor) -> Tensor:
        return -self.gamma * self._alpha(t)

    def _dsigma(self, t: Tensor) -> Tensor:
        half_g2 = self._growth * self.sigma_min**2 * (2 * self._growth * t).exp()
        return half_g2 / self._sigma(t) - self.gamma * self._sigma(t)

    def _log_snr(self, t: Tensor) -> Tensor:
        return -0.5 * torch.expm1(2 * (self.gamma + self._growth) * t).log() - self._log_unit

    def _time(self, log_snr: Tensor) -> Tensor:
        return softplus(-2 * (log_snr + self._log_unit)) / (2 * (self.gamma + self._growth))
