"""The mean-reverting diffusion of image restoration (IR-SDE): pulled towards the degraded picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.processes.bridge import Bridge

METHODS = (
    Method(
        "mean-reverting",
        paper="Image Restoration with Mean-Reverting Stochastic Differential Equations (Luo et al., 2023)",
        arxiv="2301.11699",
        claim="Ornstein-Uhlenbeck around the degraded picture, its spread fixed at the end",
        use="MeanReverting",
    ),
)

SCHEDULES = ("cosine", "linear", "constant")
_SHIFT = 0.008  # of the cosine schedule, as in Nichol & Dhariwal


def _cosine(t: Tensor) -> tuple[Tensor, Tensor]:
    """The integral of `1 - cos^2(w) / cos^2(w0)` up to t, and that speed; `w = pi/2 (t + s)/(1 + s)`, w0 at t = 0.

    The speed is `sin(d) sin(d + 2 w0) / cos^2(w0)` with `d = w - w0`, so neither cancels at small t.
    """
    rate = 0.5 * math.pi / (1 + _SHIFT)
    d, first = rate * t, rate * _SHIFT
    x, square = 2 * d, (2 * d) ** 2
    series = x**3 / 6 * (1 - square / 20 * (1 - square / 42 * (1 - square / 72 * (1 - square / 110))))
    missing = torch.where(x < 0.3, series, x - torch.sin(x))  # x - sin x
    integral = (0.5 * math.cos(2 * first) * missing + math.sin(2 * first) * torch.sin(d) ** 2) / (2 * rate)
    scale = 1 / math.cos(first) ** 2
    return scale * integral, scale * torch.sin(d) * torch.sin(d + 2 * first)


_WHOLE = float(_cosine(torch.ones((), dtype=torch.float64))[0])


@dataclass(frozen=True)
class MeanReverting(Bridge):
    """`dx = theta(t) (y - x) dt + sqrt(2 theta(t)) spread dw`, t in [0, 1] (section 3):

        x - y = e^(-s) (x0 - y) + spread sqrt(1 - e^(-2 s)) eps,   s(t) the integral of theta, `s(1) = -log(remains)`.

    `remains` is what is left of the residual at t = 1. schedule: how theta grows, "constant", "linear" in t, or
    "cosine", IR-SDE's: the complement of Nichol & Dhariwal's cosine. A run starts from `y + spread eps`.

    Raises:
        ValueError: an unknown schedule; spread not positive; remains or t_min outside 0 to 1.
    """

    name = "mean-reverting"
    spread: float = 0.2
    remains: float = 0.005
    schedule: str = "cosine"
    t_min: float = 1e-3
    t_max = 1.0
    t_zero = 0.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise suggest("schedule", self.schedule, SCHEDULES)
        if not (0 < self.spread < math.inf and 0 < self.remains < 1 and 0 < self.t_min < 1):
            raise ValueError(
                "mean-reverting needs spread > 0, 0 < remains < 1 and 0 < t_min < 1,"
                f" got {self.spread}, {self.remains} and {self.t_min}"
            )

    def _clock(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """s and theta, its derivative."""
        total = -math.log(self.remains)
        if self.schedule == "cosine":
            part, speed = _cosine(t)
            return total / _WHOLE * part, total / _WHOLE * speed
        if self.schedule == "linear":
            return total * t**2, 2 * total * t
        return total * t, torch.full_like(t, total)

    def _alpha(self, t: Tensor) -> Tensor:
        return (-self._clock(t)[0]).exp()

    def _sigma(self, t: Tensor) -> Tensor:
        return self.spread * (-torch.expm1(-2 * self._clock(t)[0])).sqrt()

    def _dalpha(self, t: Tensor) -> Tensor:
        s, theta = self._clock(t)
        return -theta * (-s).exp()

    def _dsigma(self, t: Tensor) -> Tensor:
        s, theta = self._clock(t)
        return self.spread * theta * (-2 * s).exp() / (-torch.expm1(-2 * s)).sqrt()

    def _log_snr(self, t: Tensor) -> Tensor:
        return -0.5 * torch.expm1(2 * self._clock(t)[0]).log() - math.log(self.spread)

    def _time(self, log_snr: Tensor) -> Tensor:
        s = 0.5 * softplus(-2 * (log_snr + math.log(self.spread)))
        share = s / -math.log(self.remains)
        if self.schedule == "constant":
            return share
        if self.schedule == "linear":
            return share.sqrt()
        # Newton's method on log s as a function of log t, whose slope stays between 1 and 3.
        with torch.no_grad():
            wanted = (share * _WHOLE).log()
            t = share.sqrt()
            for _ in range(5):
                integral, speed = _cosine(t)
                t = torch.where(share > 0, t * ((wanted - integral.log()) * integral / (t * speed)).exp(), 0.0)
        reached, theta = self._clock(t.detach())
        # One more step, linear in s, carries the gradient.
        return t + torch.where(share > 0, (s - reached.detach()) / theta.detach().clamp_min(1e-300), 0.0)
