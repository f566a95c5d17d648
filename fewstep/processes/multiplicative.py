"""Multiplicative noise, such as the speckle of radar and ultrasound: a diffusion of the logarithm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.coordinates import Coordinates
from fewstep.core.methods import Method

METHODS = (
    Method(
        "multiplicative-noise",
        kind="coordinates",
        paper="Perception-based multiplicative noise removal using SDEs (Vuong and Nguyen, 2024)",
        arxiv="2408.10283",
        claim="geometric Brownian noise as an ordinary process of the logarithm, from any level of speckle",
        use="Multiplicative",
    ),
)


def speckled(data: Tensor, sigma: float | Tensor, eps: Tensor) -> Tensor:
    """Positive data under geometric Brownian motion, `dx = x sqrt(d sigma^2) dw`: `x0 exp(sigma eps - sigma^2 / 2)`.

    Its mean is x0 at every sigma.
    """
    sigma = torch.as_tensor(sigma, dtype=torch.float64, device=data.device)
    return data * (sigma * eps - 0.5 * sigma**2).exp().to(data.dtype)


def gamma_level(looks: float) -> tuple[float, float]:
    """`(sigma, mean)` of the logarithm of gamma speckle of mean 1 and `looks` looks (variance 1 / looks):
    `sqrt(trigamma(looks))` and `digamma(looks) - log(looks)`."""
    if not 0 < looks < math.inf:
        raise ValueError(f"the number of looks must be positive, got {looks}")
    n = torch.tensor(looks, dtype=torch.float64)
    return math.sqrt(float(torch.polygamma(1, n))), float(torch.digamma(n)) - math.log(looks)


class Multiplicative(Coordinates):
    """Logarithms of positive data. With `EDM`, whose time is sigma, the state of `speckled` data is

        log x_t + sigma^2 / 2 = log x0 + sigma eps,

    without drift; `state` computes it from an observed picture, and a plan that begins at sigma restores it
    (`plan(process, solver, timesteps=[sigma, ..., 0])`, `fewstep.denoisers.coordinates.sample_as_data`). The network is
    given the state itself. Samples are the state's exponential. Data that are not positive are a `ValueError`.
    """

    def config(self) -> dict[str, Any]:
        return {"coordinates": "multiplicative-noise"}

    def encode(self, data: Tensor, condition: Mapping[str, Any]) -> Tensor:
        if not bool((data > 0).all()):
            raise ValueError(
                f"multiplicative noise needs positive data, got values down to {float(data.min()):g}: add an offset"
            )
        return data.log()

    def decode(self, x: Tensor, condition: Mapping[str, Any]) -> Tensor:
        return x.exp()

    def seen(self, x: Tensor, noise: Tensor, condition: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Any]]:
        return x, condition

    def state(self, noisy: Tensor, sigma: float, mean: float | None = None) -> Tensor:
        """The state of observed data whose noise has a logarithm of standard deviation sigma and this `mean`, by
        default that of geometric Brownian noise, `-sigma^2 / 2`."""
        return self.encode(noisy, {}) - (-0.5 * sigma**2 if mean is None else mean)
