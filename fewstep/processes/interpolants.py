"""Stochastic interpolants: two densities joined by any curves, with a latent noise that vanishes at both ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.process import Time
from fewstep.processes.iadb import AlphaBlending

METHODS = (
    Method(
        "interpolant",
        paper="Stochastic Interpolants: A Unifying Framework for Flows and Diffusions (Albergo et al., 2023)",
        arxiv="2303.08797",
        claim="any two densities, joined by a curve and a latent noise: an ODE and a family of SDEs",
        use="Interpolant",
    ),
)

PATHS = ("linear", "trigonometric", "encoding-decoding")
GAMMAS = ("zero", "brownian", "quadratic", "sin2")


@dataclass(frozen=True)
class Interpolant(AlphaBlending):
    """`x_t = a(t) x0 + b(t) x1 + gamma(t) z`: x0 data (t = 0), x1 from the other density (t = 1), z standard normal.

    path: "linear" (1 - t, t); "trigonometric" (cos, sin of pi t / 2); "encoding-decoding", `cos(pi t)^2` for x0 up to
    t = 1/2 and for x1 after it, which needs gamma "sin2".
    latent: gamma is 0; "brownian" sqrt(2 t (1 - t)); "quadratic" t (1 - t); "sin2" sin(pi t)^2.
    A one-sided interpolant, x1 normal and gamma 0, is any Gaussian process of this room.

    The ODE `dx/dt = v(x, t)`, `v = E[a' x0 + b' x1 + gamma' z | x_t]`, is solved in the frame of the curve: with
    `alpha = a, sigma = b`, whatever v is, there are (X0, X1) with `x = a X0 + b X1` and `v = a' X0 + b' X1`, in
    place of x0 and eps. So every solver applies; where gamma is 0 they are E[x0 | x_t] and E[x1 | x_t]. Encoding-
    decoding has no such frame and uses the straight line's.

    For the SDE see `fewstep.sampling.interpolant_sde`; closed forms and networks are in `denoisers.interpolant`.
    """

    name = "interpolant"
    path: str = "linear"
    latent: str = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path not in PATHS:
            raise suggest("path", self.path, PATHS)
        if self.latent not in GAMMAS:
            raise suggest("latent", self.latent, GAMMAS)
        if self.path == "encoding-decoding" and self.latent != "sin2":
            raise ValueError(
                f"encoding-decoding passes through pure latent noise: it needs 'sin2', not {self.latent!r}"
            )

    @property
    def _trigonometric(self) -> bool:
        return self.path == "trigonometric"

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * (1 - t)) if self._trigonometric else super()._alpha(t)  # exactly 0 at t = 1

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t) if self._trigonometric else super()._sigma(t)

    def _dalpha(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * self._sigma(t) if self._trigonometric else super()._dalpha(t)

    def _dsigma(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * self._alpha(t) if self._trigonometric else super()._dsigma(t)

    def _log_snr(self, t: Tensor) -> Tensor:
        return self._alpha(t).log() - self._sigma(t).log() if self._trigonometric else super()._log_snr(t)

    def _time(self, log_snr: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan((-log_snr).exp()) if self._trigonometric else super()._time(log_snr)

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a, b and their derivatives at t, float64: alpha and sigma, but for encoding-decoding."""
        t = t.double()
        if self.path != "encoding-decoding":
            return self._alpha(t), self._sigma(t), self._dalpha(t), self._dsigma(t)
        value, slope = torch.cos(math.pi * t).square(), -math.pi * torch.sin(2 * math.pi * t)
        first = t < 0.5
        return value * first, value * ~first, slope * first, slope * ~first

    def _gamma(self, t: Tensor) -> Tensor:
        if self.latent == "brownian":
            return (2 * t * (1 - t)).sqrt()
        if self.latent == "quadratic":
            return t * (1 - t)
        return torch.sin(math.pi * t).square() * (t < 1) if self.latent == "sin2" else torch.zeros_like(t)

    def _gamma_dgamma(self, t: Tensor) -> Tensor:
        if self.latent == "brownian":
            return 1 - 2 * t
        if self.latent == "quadratic":
            return t * (1 - t) * (1 - 2 * t)
        return self._gamma(t) * math.pi * torch.sin(2 * math.pi * t)

    def gamma(self, t: Time) -> Time:
        """The latent noise's coefficient, 0 at both ends."""
        return self._apply("_gamma", t)

    def gamma_dgamma(self, t: Time) -> Time:
        """gamma times its derivative: finite at both ends, where "brownian" has an infinite derivative."""
        return self._apply("_gamma_dgamma", t)
