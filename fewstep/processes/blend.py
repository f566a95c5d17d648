"""The detail of a picture, fading on the way to noise: the process between the scales of a pyramid (SinDDM).

At every scale but the coarsest the forward process leads from the sharp picture x towards the coarser one y, scaled up,
while it adds noise (Kulikov et al., 2023, arXiv:2211.16582):

    x_t = alpha (1 - gamma) x + alpha gamma y + sigma eps,    gamma = t / T, so that x has gone at the start t = T.

With the detail `d = x - y` and `u_t = x_t - alpha y` this is `u_t = alpha (1 - gamma) d + sigma eps`: a Gaussian
process of the detail, in which every solver works as it is. T lies where the noise is as strong as the detail; below it
the coarser picture says more than the noise hides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.process import Process


@dataclass(frozen=True)
class Blend(Process):
    """`alpha = (1 - t) (1 - t / T)`, `sigma = t`, t from T = t_max (no detail left) to 0: the rectified flow's noise,
    with the detail fading to nothing on the way."""

    name = "blend"
    t_max: float = 0.5
    t_min: float = 1e-3
    t_zero = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.t_min < self.t_max < 1:
            raise ValueError(f"blend needs 0 < t_min < t_max < 1, got {self.t_min} and {self.t_max}")

    def _alpha(self, t: Tensor) -> Tensor:
        return (1 - t) * (1 - t / self.t_max)

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def _log_snr(self, t: Tensor) -> Tensor:
        return torch.log1p(-t) + torch.log1p(-t / self.t_max) - t.log()

    def _dalpha(self, t: Tensor) -> Tensor:
        return (2 * t - 1) / self.t_max - 1

    def _dsigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        # The smaller root of t^2 - b t + T = 0, b = 1 + T + T e^log_snr, divided by b so that nothing overflows.
        top = self.t_max
        inverse = 1 / (1 + top + top * log_snr.exp())
        return 2 * top * inverse / (1 + (1 - 4 * top * inverse.square()).clamp_min(0).sqrt())
