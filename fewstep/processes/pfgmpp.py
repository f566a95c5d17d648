"""PFGM++: noise of heavy tails, from one extra dimension (Poisson flows) to infinitely many (diffusion)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.processes.ve import EDM

METHODS = (
    Method(
        "pfgmpp",
        paper="PFGM++: Unlocking the Potential of Physics-Inspired Generative Models (Xu et al., 2023)",
        arxiv="2302.04265",
        claim="EDM with Student-t noise of D degrees: Poisson flows at D = 1, diffusion as D grows",
        use="PFGMpp",
    ),
)

_RADIUS = -1  # number of the draw for the radius; 1, 2, ... are the steps'


@dataclass(frozen=True)
class PFGMpp(EDM):
    """`x_t = x0 + sigma eps`, sigma = t, with `p(x | x0) ~ (|x - x0|^2 + r^2)^(-(N + D) / 2)`, `r = sigma sqrt(D)`.

    That is the multivariate Student t of D degrees of freedom: `eps = z / sqrt(c / D)`, z standard normal and c a
    chi-square of D degrees, one per sample; N does not enter. The field of N + D dimensional electrostatics then leads
    along `dx / d(sigma) = (x - E[x0 | x]) / sigma`, EDM's ODE: its solvers, times, preconditioning and noise
    levels carry over at the same sigma. The paper's best pictures have D = 2048 (CIFAR-10) and 128 (FFHQ); D = 1 is
    PFGM, `None` infinity.

    There is no SDE of the form dx = f x dt + g dw: `drift` and `diffusion2` raise ValueError, and stochastic solvers,
    which add Gaussian noise, follow another law.
    """

    name = "pfgmpp"
    degrees: float | None = 128.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.degrees is not None and not 0 < self.degrees < math.inf:
            raise ValueError(f"the extra dimensions D must be positive, or None for infinity, got {self.degrees}")

    def stretch(self, normal: Tensor) -> Tensor:
        """`sqrt(D / c)` float64 where c is the chi-square of D degrees at the quantile of each standard normal."""
        if self.degrees is None:
            return torch.ones_like(normal, dtype=torch.float64)
        from scipy.special import gammainccinv, gammaincinv

        at, half = normal.detach().double().cpu(), 0.5 * self.degrees
        below = torch.special.ndtr(-at.abs()).numpy()  # the smaller tail, which keeps its precision
        square = torch.where(
            at < 0, torch.from_numpy(gammaincinv(half, below)), torch.from_numpy(gammainccinv(half, below))
        )
        return (half / square).sqrt().to(normal.device)

    def _noise(self, normal: Tensor, radius: Tensor) -> Tensor:
        factor = self.stretch(radius.flatten(1)[:, 0]).to(normal.dtype)
        return normal * factor.view(-1, *[1] * (normal.ndim - 1))

    def start(self, normal: Callable[[int], Tensor]) -> Tensor:
        """Student-t noise (B, *shape), each sample's from its own stream."""
        return self._noise(normal(0), normal(_RADIUS))

    def eps(self, normal: Callable[[], Tensor]) -> Tensor:
        """Student-t noise (B, *shape) for training."""
        return self._noise(normal(), normal())

    def log_radius_density(self, radius: Tensor, size: int) -> Tensor:
        """Log density of `|x - x0| / sigma` of samples of `size` numbers, float64:
        `R^(N - 1) / (R^2 + D)^((N + D) / 2)`, normalised."""
        radius, n = radius.double(), float(size)
        if self.degrees is None:
            return (n - 1) * radius.log() - 0.5 * radius**2 - math.lgamma(n / 2) - (n / 2 - 1) * math.log(2)
        d = self.degrees
        beta = math.lgamma(n / 2) + math.lgamma(d / 2) - math.lgamma((n + d) / 2)
        share = (n - 1) * radius.log() - 0.5 * (n + d) * torch.log1p(radius**2 / d)
        return share + math.log(2) - 0.5 * n * math.log(d) - beta

    def drift(self, t: Any) -> NoReturn:
        raise ValueError("PFGM++ has no SDE of the form dx = f x dt + g dw: its noise is not Gaussian")

    def diffusion2(self, t: Any) -> NoReturn:
        self.drift(t)
