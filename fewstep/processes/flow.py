"""The rectified flow: the straight line between data and noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.process import Process

METHODS = (
    Method(
        "flow",
        paper="Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow (Liu et al., 2023)",
        arxiv="2209.03003",
        claim="alpha = 1 - t, sigma = t; the velocity is eps - x0",
        use="Flow",
    ),
)


@dataclass(frozen=True)
class Flow(Process):
    """`x_t = (1 - t) x0 + t eps`, t from 1 (pure noise: alpha = 0) to 0."""

    name = "flow"
    t_min: float = 1e-3
    t_max: float = 1.0
    t_zero = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.t_min < self.t_max <= 1:
            raise ValueError(f"flow needs 0 < t_min < t_max <= 1, got {self.t_min} and {self.t_max}")

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def _log_snr(self, t: Tensor) -> Tensor:
        return torch.log1p(-t) - t.log()

    def _dalpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def _dsigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr)
