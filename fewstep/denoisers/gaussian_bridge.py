"""The exact denoiser of a bridge between Gaussian pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.conditions.picture import Picture
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, expand
from fewstep.denoisers.bridge import check_bridge, check_picture

if TYPE_CHECKING:
    from fewstep.processes.bridge import Bridge

METHODS = (
    Method(
        "gaussian-bridge",
        claim="exact x0 given state and picture, exact distribution of x0 given the picture, exact pairs",
        use="GaussianBridge",
    ),
)


class GaussianBridge(Denoiser):
    """Pairs (x0, y) that are jointly normal, under a bridge.

    Given y, x0 is `N(m, C)` with `m = m0 + K (y - my)`, `K = Cxy Cyy^-1`, `C = Cxx - K Cyx`. So in the coordinates of
    the bridge, with C = U diag(v) U^T,

        E[u0 | u, y] = m_u + U [alpha v / (alpha^2 v + sigma^2)] U^T (u - alpha m_u),   m_u = m - centre y.

    Args:
        mean: of data and pictures, `(2, *shape)`; covariance: of both, flattened, `(2 D, 2 D)`, the data first.

    Raises:
        ValueError: a process that is not a bridge or scales its noise; a covariance of another shape or not symmetric
            positive definite.
    """

    process: Bridge

    def __init__(self, mean: Tensor, covariance: Tensor, process: Bridge):
        super().__init__()
        if check_bridge(process).modulated:
            raise ValueError(f"{process.name!r} scales its noise by the residual: its states are not Gaussian")
        mean, covariance = mean.double(), covariance.double()
        self.shape, self.process = tuple(mean.shape[1:]), process
        d = math.prod(self.shape)
        if mean.shape[0] != 2 or covariance.shape != (2 * d, 2 * d):
            raise ValueError(
                f"the mean must be (2, *shape) and the covariance {(2 * d, 2 * d)},"
                f" got {tuple(mean.shape)} and {tuple(covariance.shape)}"
            )
        if not torch.allclose(covariance, covariance.mT) or not bool((torch.linalg.eigvalsh(covariance) > 0).all()):
            raise ValueError("the covariance must be symmetric and positive definite")
        self.conditions = {"y": Picture(self.shape)}
        gain = torch.linalg.solve(covariance[d:, d:], covariance[d:, :d]).mT
        variances, basis = torch.linalg.eigh(covariance[:d, :d] - gain @ covariance[d:, :d])
        for name, value in {
            "mean": mean.reshape(2, d),
            "root": torch.linalg.cholesky(covariance),
            "gain": gain,
            "variances": variances,
            "basis": basis,
        }.items():
            self.register_buffer(name, value)
        self.mean: Tensor
        self.root: Tensor
        self.gain: Tensor
        self.variances: Tensor
        self.basis: Tensor

    def config(self) -> dict[str, Any]:
        return {"shape": self.shape, "process": self.process}

    @classmethod
    def from_config(cls, options: dict[str, Any], state: Mapping[str, Tensor]) -> GaussianBridge:
        mean = state["mean"].reshape(2, *options["shape"])
        return cls(mean, state["root"] @ state["root"].mT, options["process"])

    def encode(self, data: Tensor, y: Tensor | None = None, **condition: Any) -> Tensor:
        return data - self.process.centre * check_picture(y, data)

    def decode(self, x: Tensor, y: Tensor | None = None, **condition: Any) -> Tensor:
        return x + self.process.centre * check_picture(y, x)

    def posterior(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution of x0 given y `(B, *shape)`: means `(B, *shape)` and the covariance `(D, D)`, float64."""
        mean = self.mean[0] + (y.flatten(1).double() - self.mean[1]) @ self.gain.mT
        return mean.reshape(y.shape), self.basis @ torch.diag(self.variances) @ self.basis.mT

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, **condition: Any) -> Prediction:
        y = check_picture(y, x)
        u, mean = x.flatten(1).double(), self.encode(self.posterior(y)[0], y=y).flatten(1)
        alpha, sigma = (expand(value, u) for value in (self.process.alpha(t), self.process.sigma(t)))
        # One sample's distribution has no mean to fall back on where alpha = sigma = 0, but no process goes there.
        weight = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        value = mean + (weight * ((u - alpha * mean) @ self.basis)) @ self.basis.mT
        return Prediction(value.reshape(x.shape).to(x.dtype), "x0", x, t, self.process)

    def sample(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """n exact pairs: data and pictures, `(n, *shape)` each, float64."""
        generator, shape = torch.Generator().manual_seed(seed), self.shape or ()
        d = self.mean.shape[1]
        normal = torch.randn(n, 2 * d, generator=generator, dtype=torch.float64).to(self.root.device)
        pairs = self.mean.flatten() + normal @ self.root.mT
        return pairs[:, :d].reshape(n, *shape), pairs[:, d:].reshape(n, *shape)
