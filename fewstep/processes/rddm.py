"""Residual denoising diffusion: the residual and the noise come in on separate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.processes.bridge import Bridge

_PAPER = "Residual Denoising Diffusion Models (Liu et al., 2024)"
METHODS = (
    Method(
        "rddm",
        paper=_PAPER,
        arxiv="2308.13712",
        claim="residual and noise on power schedules independent of each other",
        use="RDDM",
    ),
    Method(
        "residual",
        paper=_PAPER,
        arxiv="2308.13712",
        claim="any diffusion run on the residual; with VP, DDPM and DDIM in the residual's terms",
        use="Residual",
    ),
)


@dataclass(frozen=True)
class RDDM(Bridge):
    """`x = x0 + A(t) (y - x0) + B(t) eps`, t in [0, 1], A and B^2 integrals of powers:

    `A = 1 - (1 - t)^residual`, the residual coming in early (its rate falls as a power of 1 - t), and
    `B = noise t^power`. The defaults are the paper's: rate of A falling linearly, that of B^2 rising linearly.

    Raises:
        ValueError: residual below 1 (its rate would be infinite at the end), power or noise not positive, t_min
            outside 0 to 1.
    """

    name = "rddm"
    residual: float = 2.0
    power: float = 1.0
    noise: float = 1.0
    t_min: float = 1e-3
    t_max = 1.0
    t_zero = 0.0

    def __post_init__(self) -> None:
        positive = 0 < self.power < math.inf and 0 < self.noise < math.inf
        if not (positive and 1 <= self.residual < math.inf and 0 < self.t_min < 1):
            raise ValueError(
                "rddm needs residual >= 1, power > 0, noise > 0 and 0 < t_min < 1,"
                f" got {self.residual}, {self.power}, {self.noise} and {self.t_min}"
            )

    def _alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** self.residual

    def _sigma(self, t: Tensor) -> Tensor:
        return self.noise * t**self.power

    def _dalpha(self, t: Tensor) -> Tensor:
        return -self.residual * (1 - t) ** (self.residual - 1)

    def _dsigma(self, t: Tensor) -> Tensor:
        return self.noise * self.power * t ** (self.power - 1)

    def _log_snr(self, t: Tensor) -> Tensor:
        return self.residual * torch.log1p(-t) - self.power * t.log() - math.log(self.noise)

    def _time(self, log_snr: Tensor) -> Tensor:
        # In z = log(t / (1 - t)) log_snr falls at a rate between `residual` and `power`: Newton's method settles fast.
        wanted = log_snr + math.log(self.noise)
        with torch.no_grad():
            z = -wanted / torch.where(wanted > 0, self.power, self.residual)
            for _ in range(20):
                z = torch.where(wanted.isinf(), z, z + (self._of(z) - wanted) / self._fall(z))
        reached, fall = self._of(z), self._fall(z)
        # The same step once more carries the gradient.
        return torch.where(wanted.isinf(), z, z + (reached - wanted) / fall).sigmoid()

    def _of(self, z: Tensor) -> Tensor:
        return self.power * softplus(-z) - self.residual * softplus(z)

    def _fall(self, z: Tensor) -> Tensor:
        return self.power * torch.sigmoid(-z) + self.residual * torch.sigmoid(z)


@dataclass(frozen=True)
class Residual(Bridge):
    """Any diffusion run on the residual: `x - y = alpha (x0 - y) + sigma eps`, alpha and sigma those of `base`.

    In RDDM's terms the schedules are `A = 1 - alpha`, `B = sigma` (their coefficient transformation): with
    y = 0 it is the base itself.

    Raises:
        ValueError: a base that is a bridge itself.
    """

    name = "residual"
    base: Process

    def __post_init__(self) -> None:
        if isinstance(self.base, Bridge):
            raise ValueError(f"{self.base.name!r} is a bridge already: give the diffusion alone")

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.base.t_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.base.t_max

    @property
    def t_zero(self) -> float:  # type: ignore[override]
        return self.base.t_zero

    @property
    def table_steps(self) -> int | None:
        return self.base.table_steps

    def _alpha(self, t: Tensor) -> Tensor:
        return self.base._alpha(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.base._sigma(t)

    def _dalpha(self, t: Tensor) -> Tensor:
        return self.base._dalpha(t)

    def _dsigma(self, t: Tensor) -> Tensor:
        return self.base._dsigma(t)

    def _log_snr(self, t: Tensor) -> Tensor:
        return self.base._log_snr(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return self.base._time(log_snr)
