"""Residual shifting: a chain from the data to the degraded picture plus noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.processes.bridge import Bridge

METHODS = (
    Method(
        "resshift",
        paper="ResShift: Efficient Diffusion Model for Image Super-resolution by Residual Shifting (Yue et al., 2023)",
        arxiv="2307.12348",
        claim="the residual is shifted in together with the noise, in few steps",
        use="ResShift",
    ),
)


@dataclass(frozen=True)
class ResShift(Bridge):
    """`x = x0 + eta (y - x0) + kappa sqrt(eta) eps`, eta geometric in t from `eta_min` to `eta_max` (eq. 2).

    `sqrt(eta) = sqrt(eta_max) (eta_min / eta_max)^((1 - t) / 2)`, t in [0, 1]. The paper's chain of T steps has its
    times at `grid(T)`. The formula never reaches eta = 0: the clean sample has a separate time, `t_zero = -1`.
    kappa trades fidelity to y for diversity.

    Raises:
        ValueError: unless 0 < eta_min < eta_max <= 1 and kappa > 0.
    """

    name = "resshift"
    kappa: float = 2.0
    eta_min: float = 4e-4
    eta_max: float = 0.999
    t_min = 0.0
    t_max = 1.0
    t_zero = -1.0

    def __post_init__(self) -> None:
        if not 0 < self.eta_min < self.eta_max <= 1 or not 0 < self.kappa < math.inf:
            raise ValueError(
                "resshift needs 0 < eta_min < eta_max <= 1 and kappa > 0,"
                f" got {self.eta_min}, {self.eta_max} and {self.kappa}"
            )

    def grid(self, steps: int, power: float = 0.3) -> list[float]:
        """The times of the paper's chain of `steps` steps and the clean end: `((i - 1) / (steps - 1))^power`.

        power below 1 puts more steps where there is much noise.
        """
        if steps < 1 or not power > 0:
            raise ValueError(f"the chain needs at least 1 step and a positive power, got {steps} and {power}")
        return [(i / (steps - 1)) ** power if steps > 1 else 1.0 for i in reversed(range(steps))] + [self.t_zero]

    @property
    def _rate(self) -> float:
        return math.log(self.eta_max / self.eta_min)

    def _log_eta(self, t: Tensor) -> Tensor:
        return torch.where(t <= self.t_zero, -math.inf, math.log(self.eta_max) - self._rate * (1 - t))

    def _alpha(self, t: Tensor) -> Tensor:
        return 0 - torch.expm1(self._log_eta(t))  # not -0 at eta = 1

    def _sigma(self, t: Tensor) -> Tensor:
        return self.kappa * (0.5 * self._log_eta(t)).exp()

    def _dalpha(self, t: Tensor) -> Tensor:
        return -self._rate * self._log_eta(t).exp()

    def _dsigma(self, t: Tensor) -> Tensor:
        return 0.5 * self._rate * self._sigma(t)

    def _log_snr(self, t: Tensor) -> Tensor:
        log_eta = self._log_eta(t)
        return (-torch.expm1(log_eta)).log() - 0.5 * log_eta - math.log(self.kappa)

    def _time(self, log_snr: Tensor) -> Tensor:
        # (1 - eta) / sqrt(eta) = kappa e^log_snr = 2 sinh(-log(eta) / 2).
        log_eta = -2 * torch.asinh(0.5 * self.kappa * log_snr.exp())
        return (1 + (log_eta - math.log(self.eta_max)) / self._rate).clamp_min(self.t_zero)
