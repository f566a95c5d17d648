"""Ornstein-Uhlenbeck bridges: mean-reverting diffusions pinned to their mean, with plain or residual-scaled noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.processes.bridge import Pinned

METHODS = (
    Method(
        "goub",
        paper="Image Restoration Through Generalized Ornstein-Uhlenbeck Bridge (Yue et al., 2024)",
        arxiv="2312.10299",
        claim="the mean-reverting diffusion pinned to the degraded picture",
        use="GOUB",
    ),
    Method(
        "rdbm",
        paper="Residual Diffusion Bridge Model for Image Restoration (Wang et al., 2025)",
        arxiv="2510.23116",
        claim="noise in proportion to the residual: intact pixels get none",
        use="RDBM",
    ),
)


@dataclass(frozen=True)
class GOUB(Pinned):
    """`dx = theta (y - x) dt + sqrt(2 theta) spread dw` pinned to y, where `theta` is its integral over the whole time:

        x - y = sinh(theta - s) / sinh(theta) (x0 - y) + spread sqrt(2 sinh(s) sinh(theta - s) / sinh(theta)) eps,

    s in [0, theta] the integral up to now: `s = log(1 + sin^2(pi t/2) (e^(2 theta) - 1)) / 2` on the clock of `Pinned`.
    theta to 0 with `2 theta spread^2` fixed is the Brownian bridge. spread = 1 has a and c of the bridge of a
    variance-preserving diffusion with the same SNR at its end.

    Raises:
        ValueError: theta or spread not positive, theta above 100 (its end would overflow), t_min outside 0 to 1.
    """

    name = "goub"
    theta: float = 5.3
    spread: float = 0.2
    t_min: float = 1e-4

    def __post_init__(self) -> None:
        if not (0 < self.theta <= 100 and 0 < self.spread < math.inf and 0 < self.t_min < 1):
            raise ValueError(
                f"{self.name} needs 0 < theta <= 100, spread > 0 and 0 < t_min < 1,"
                f" got {self.theta}, {self.spread} and {self.t_min}"
            )

    @property
    def k(self) -> float:
        return self.spread * math.sqrt(math.expm1(2 * self.theta))

    def integral(self, t: Tensor) -> Tensor:
        """s, the integral of theta up to time t, float64."""
        return 0.5 * torch.log1p(torch.sin(0.5 * math.pi * t.double()) ** 2 * math.expm1(2 * self.theta))

    def _signal(self, sine: Tensor) -> Tensor:
        return (1 + sine**2 * math.expm1(2 * self.theta)).rsqrt()


@dataclass(frozen=True)
class RDBM(GOUB):
    """The same with the noise of a pair scaled by its residual, elementwise: `(x0 - y) eps` in place of eps.

    Where the picture is intact, x0 = y, nothing is ever added, and a deterministic step leaves it alone: a step keeps
    `(x - y) / c` and replaces x0, so pixels with x = y and a predicted residual of 0 stay what they are. The pinned end
    contains no information about the noise, so runs start from its mean, 0. Stochastic solvers would add noise
    everywhere.
    """

    name = "rdbm"
    modulated = True
    theta: float = 1.0
    spread: float = 0.5

    def start(self, normal: Callable[[int], Tensor]) -> Tensor:
        return torch.zeros_like(normal(0))
