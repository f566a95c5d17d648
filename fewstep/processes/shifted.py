"""A resolution shift: the same process on a clock that spends more time at high noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.process import Process

METHODS = (
    Method(
        "shifted",
        paper="Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024)",
        arxiv="2403.03206",
        claim="noise-to-signal ratio times a factor at every time, applied exactly once",
        use="Shifted",
    ),
)


@dataclass(frozen=True)
class Shifted(Process):
    """`sigma/alpha` of `base` multiplied by `shift` at every time; alpha and sigma stay in the base's family.

    With `tau(t) = base.time(base.log_snr(t) - log shift)` the coefficients are the base's at tau. For the rectified
    flow this is `tau = shift t / (1 + (shift - 1) t)` (eq. 23). Larger pictures need a shift above 1.

    Raises:
        ValueError: shift not positive, or a base that is shifted already: a shift is applied exactly once.
    """

    name = "shifted"
    base: Process
    shift: float

    def __post_init__(self) -> None:
        if isinstance(self.base, Shifted):
            raise ValueError(
                f"the process is already shifted by {self.base.shift}: a shift is applied once;"
                f" shift its base by {self.base.shift * self.shift:g} if both were meant"
            )
        if not (self.shift > 0 and math.isfinite(self.shift)):
            raise ValueError(f"the shift must be a positive number, got {self.shift}")

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.base.t_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.base.t_max

    @property
    def t_zero(self) -> float:  # type: ignore[override]
        return self.base.t_zero

    def base_time(self, t: Tensor) -> Tensor:
        """The base's time with this process's log-SNR at t (exact at both ends, where the log-SNR is infinite)."""
        log_snr = self.base._log_snr(t)
        tau = self.base._time(log_snr - math.log(self.shift))
        return torch.where(torch.isinf(log_snr), t, tau)

    def _alpha(self, t: Tensor) -> Tensor:
        return self.base._alpha(self.base_time(t))

    def _sigma(self, t: Tensor) -> Tensor:
        return self.base._sigma(self.base_time(t))

    def _log_snr(self, t: Tensor) -> Tensor:
        return self.base._log_snr(t) - math.log(self.shift)

    def _dtau(self, t: Tensor) -> Tensor:
        """`d tau / dt = lambda'(t) / lambda'(tau)`, in a form that is finite where alpha or sigma is 0.

        `lambda' = w / (alpha sigma)` with `w = alpha' sigma - alpha sigma'`, and
        `alpha(tau) sigma(t) shift = alpha(t) sigma(tau)` turns the quotient of the denominators into a square.
        """
        base, tau = self.base, self.base_time(t)
        w = [base._dalpha(u) * base._sigma(u) - base._alpha(u) * base._dsigma(u) for u in (t, tau)]
        noisy = base._sigma(t) > base._alpha(t)
        by_sigma = (base._sigma(tau) / base._sigma(t)) ** 2 / self.shift
        by_alpha = (base._alpha(tau) / base._alpha(t)) ** 2 * self.shift
        return w[0] / w[1] * torch.where(noisy, by_sigma, by_alpha)

    def _dalpha(self, t: Tensor) -> Tensor:
        return self.base._dalpha(self.base_time(t)) * self._dtau(t)

    def _dsigma(self, t: Tensor) -> Tensor:
        return self.base._dsigma(self.base_time(t)) * self._dtau(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return self.base._time(log_snr + math.log(self.shift))
