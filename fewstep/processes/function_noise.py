"""Noise that is a function of time: a Gaussian process drawn at the observation times, which may be any."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.coordinates import Coordinates
from fewstep.core.errors import suggest
from fewstep.core.methods import Method

METHODS = (
    Method(
        "function-noise",
        kind="coordinates",
        paper="Modeling Temporal Data as Continuous Functions with Stochastic Process Diffusion (Bilos et al., 2023)",
        arxiv="2211.02590",
        claim="noise correlated in time (RBF, Matern, OU), on grids that differ from sample to sample",
        use="FunctionNoise",
    ),
)

KERNELS = ("rbf", "matern-3/2", "matern-5/2", "ou", "white")


def covariance(times: Tensor, kernel: str = "ou", length: float = 0.2, jitter: float = 0.0) -> Tensor:
    """The kernel's covariance `(..., N, N)` at times `(..., N)`, float64, of unit variance.

    With d the distance of two times over `length`: "rbf" `exp(-d^2 / 2)`, "ou" `exp(-d)` (Matern 1/2), "matern-3/2"
    `(1 + sqrt(3) d) exp(-sqrt(3) d)`, "matern-5/2" `(1 + sqrt(5) d + 5 d^2 / 3) exp(-sqrt(5) d)`, "white" 1 on the
    diagonal alone. `jitter` is white noise on top: `(K + jitter) / (1 + jitter)`.
    """
    if kernel not in KERNELS:
        raise suggest("kernel", kernel, KERNELS)
    if not 0 < length < math.inf or not 0 <= jitter < math.inf:
        raise ValueError(f"the length must be positive and the jitter at least 0, got {length} and {jitter}")
    times = times.double()
    d = (times[..., :, None] - times[..., None, :]).abs() / length
    one = torch.eye(times.shape[-1], dtype=torch.float64, device=times.device).expand(d.shape)
    if kernel == "rbf":
        k = torch.exp(-0.5 * d**2)
    elif kernel == "ou":
        k = torch.exp(-d)
    elif kernel == "white":
        k = one
    else:
        root = math.sqrt(3.0 if kernel == "matern-3/2" else 5.0) * d
        k = (1 + root + (root**2 / 3 if kernel == "matern-5/2" else 0)) * torch.exp(-root)
    return (k + jitter * one) / (1 + jitter)


def factor(matrix: Tensor) -> Tensor:
    """Cholesky's lower factor `(..., N, N)`; `ValueError` where the covariance is not positive definite."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    if bool((info > 0).any()):
        raise ValueError(
            "the covariance of the noise is not positive definite: two observation times are equal or too close for"
            " this kernel; take more jitter, a shorter length or a rougher kernel"
        )
    return lower


class FunctionNoise(Coordinates):
    """Whitened coordinates `L^-1 x` of functions sampled at times, with `L L^T` the covariance of the noise.

    `x_t = alpha x + sigma L eps` (Bilos et al.) is the ordinary process in `L^-1 x`: with a table of betas this
    is their DSPD, with a continuous process their CSPD. Samples are `(N,)` or `(C, N)`, the channels' noise
    independent. The condition `y` is `(B, N)`, the times, or `(B, K, N)`: the times in row 0, and below it whatever
    else the network is to know at them (values observed, and where). The network is given noisy data, not whitened
    ones, and what it predicts is in whitened coordinates: eps is white.

    jitter: see `covariance`; smooth kernels need it (1e-4 keeps the condition number below 1e4 N), "ou" and "white" do
    not.
    """

    def __init__(self, kernel: str = "ou", length: float = 0.2, jitter: float = 0.0) -> None:
        super().__init__()
        covariance(torch.zeros(1), kernel, length, jitter)  # the arguments' check
        self.kernel, self.length, self.jitter = kernel, length, jitter
        self._last: tuple[Tensor, Tensor] | None = None

    def config(self) -> dict[str, Any]:
        options = {"kernel": self.kernel, "length": self.length, "jitter": self.jitter}
        return {"coordinates": "function-noise", **options}

    def lower(self, condition: Mapping[str, Any]) -> Tensor:
        """L of the samples' times, `(B, N, N)`, float64; kept while the same condition is asked for again."""
        y = condition.get("y")
        if not isinstance(y, Tensor) or y.ndim not in (2, 3):
            raise ValueError("function noise needs the observation times: y=(B, N), or row 0 of y=(B, K, N)")
        if self._last is None or self._last[0] is not y:
            times = y if y.ndim == 2 else y[:, 0]
            self._last = (y, factor(covariance(times, self.kernel, self.length, self.jitter)))
        return self._last[1]

    def _fitting(self, x: Tensor, condition: Mapping[str, Any]) -> Tensor:
        lower = self.lower(condition)
        if x.ndim not in (2, 3) or x.shape[-1] != lower.shape[-1] or len(x) != len(lower):
            times = tuple(lower.shape[:-1])
            raise ValueError(f"samples of shape {tuple(x.shape)} do not fit observation times of shape {times}")
        return lower if x.ndim == 2 else lower[:, None]

    def encode(self, data: Tensor, condition: Mapping[str, Any]) -> Tensor:
        lower = self._fitting(data, condition)
        return torch.linalg.solve_triangular(lower, data.double()[..., None], upper=False)[..., 0].to(data.dtype)

    def decode(self, x: Tensor, condition: Mapping[str, Any]) -> Tensor:
        return (self._fitting(x, condition).to(x.dtype) @ x[..., None])[..., 0]
