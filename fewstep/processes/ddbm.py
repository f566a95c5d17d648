"""Denoising diffusion bridges: any diffusion, conditioned on ending in a given picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.processes.bridge import Bridge, Pinned
from fewstep.processes.vp import VP

METHODS = (
    Method(
        "ddbm",
        paper="Denoising Diffusion Bridge Models (Zhou et al., 2024)",
        arxiv="2309.16948",
        claim="a diffusion pinned to a picture at its end; any solver runs it, from exactly that picture",
        use="DDBM",
    ),
)


@dataclass(frozen=True)
class DDBM(Pinned):
    """The bridge of `base`, from x0 to `x_T = y` (table 1). See `Pinned` for its clock.

        x = alpha_s (1 - R) x0 + R alpha_s / alpha_T y + sigma_s sqrt(1 - R) eps,   R = SNR_T / SNR_s,

    with alpha, sigma those of the base at its time s, and T its `t_max`. The default is the paper's DDBM-VP; DDBM-VE is
    `DDBM(EDM())`. If y itself is a noisy sample of the base, `y = alpha_T x0 + sigma_T z`, the bridge is the base.

    Raises:
        ValueError: a base without signal at its end (alpha = 0 there), or one that is a bridge itself.
    """

    name = "ddbm"
    centre = 0
    base: Process = VP(beta_min=0.1, beta_max=2.1)

    def __post_init__(self) -> None:
        if isinstance(self.base, Bridge):
            raise ValueError(f"a bridge is built on a diffusion, not on the bridge {self.base.name!r}")
        if not math.isfinite(self.base.log_snr(self.base.t_max)):
            raise ValueError(
                f"{self.base.name!r} ends at alpha = 0, so its end says nothing about x0: give it an earlier t_max"
            )

    @property
    def k(self) -> float:
        return math.exp(-self.base.log_snr(self.base.t_max))

    @property
    def t_min(self) -> float:  # type: ignore[override]
        """Where the base has its `t_min`."""
        sine = math.exp(-self.base.log_snr(self.base.t_min)) / self.k
        return 2 / math.pi * math.asin(min(sine, 1.0))

    def base_time(self, t: Tensor) -> Tensor:
        """The base's time s, float64, of times t of the bridge."""
        return self.base._time(-(self.k * torch.sin(0.5 * math.pi * t.double())).log())

    def _signal(self, sine: Tensor) -> Tensor:
        return self.base._alpha(self.base._time(-(self.k * sine).log()))

    def _shift(self, t: Tensor) -> Tensor:
        sine = torch.sin(0.5 * math.pi * t)
        return sine**2 * self._signal(sine) / self.base.alpha(self.base.t_max)
