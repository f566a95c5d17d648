"""Resfusion: the residual in the mean of an ordinary diffusion, which is left half way."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.processes.bridge import Bridge
from fewstep.processes.vp import VP

METHODS = (
    Method(
        "resfusion",
        paper="Resfusion: Denoising Diffusion Probabilistic Models for Image Restoration (Shi et al., 2024)",
        arxiv="2311.14900",
        claim="starts from the noised degraded picture where the data cancel, at sqrt(alpha_bar) = 1/2",
        use="Resfusion",
    ),
)


@dataclass(frozen=True)
class Resfusion(Bridge):
    """`x = A x0 + (1 - A) (y - x0) + sqrt(1 - A^2) eps`, A the alpha of a variance-preserving `base`.

    So the data's coefficient is `2 A - 1`, and vanishes where A = 1/2: there x is `y / 2 + sqrt(3)/2 eps` for any
    data, and runs start there (`t_max`). In x - (y - x0) it is the base itself.

    Raises:
        ValueError: a base that does not preserve variance, or does not reach A = 1/2.
    """

    name = "resfusion"
    centre = 0
    base: Process = VP()

    def __post_init__(self) -> None:
        base = self.base
        if isinstance(base, Bridge):
            raise ValueError(f"Resfusion is built on a diffusion, not on the bridge {base.name!r}")
        if any(abs(base.alpha(t) ** 2 + base.sigma(t) ** 2 - 1) > 1e-9 for t in (base.t_min, base.t_max)):
            raise ValueError(f"Resfusion needs a variance-preserving base, got {base.name!r}")
        if base.alpha(base.t_max) >= 0.5:
            raise ValueError(
                f"Resfusion starts at alpha = 1/2, and the base ends at {base.alpha(base.t_max):.3g}: let it go further"
            )

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.base.t_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        """The half-way point, `A = 1/2`."""
        return self.base.time(-0.5 * math.log(3))

    @property
    def t_zero(self) -> float:  # type: ignore[override]
        return self.base.t_zero

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.where(t >= self.t_max, 0.0, 2 * self.base._alpha(t) - 1)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.base._sigma(t)

    def _dalpha(self, t: Tensor) -> Tensor:
        return 2 * self.base._dalpha(t)

    def _dsigma(self, t: Tensor) -> Tensor:
        return self.base._dsigma(t)

    def _shift(self, t: Tensor) -> Tensor:
        # 1 - A = sigma^2 / (1 + A), which does not cancel near the data.
        return self.base._sigma(t) ** 2 / (1 + self.base._alpha(t))

    def _time(self, log_snr: Tensor) -> Tensor:
        # 2 A - 1 = q sqrt(1 - A^2), q = e^log_snr, gives 1 - A = 1 / (q^2 + 2 + q sqrt(q^2 + 3)).
        # Divided by q^2 nothing overflows: with p = 1/q and m = 1 + 2 p^2 + sqrt(1 + 3 p^2),
        # A / sqrt(1 - A^2) = (m / p^2 - 1) / sqrt(2 m / p^2 - 1) = (m - p^2) / (p sqrt(2 m - p^2)).
        # Where q < 1 the form in q is the stable one: with n = q^2 + 2 + q sqrt(q^2 + 3), (n - 1) / sqrt(2 n - 1).
        p, q = (-log_snr.clamp_min(0.0)).exp(), log_snr.clamp_max(0.0).exp()
        m, n = 1 + 2 * p**2 + (1 + 3 * p**2).sqrt(), q**2 + 2 + q * (q**2 + 3).sqrt()
        clean = (m - p**2).log() - 0.5 * (2 * m - p**2).log() + log_snr.clamp_min(0.0)
        noisy = (n - 1).log() - 0.5 * (2 * n - 1).log()
        return self.base._time(torch.where(log_snr > 0, clean, noisy))
