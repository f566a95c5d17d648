"""Denoisers of reflected diffusion: exact for data sets and for product densities, and a network.

They answer in unfolded coordinates, and `decode` folds: see `fewstep.processes.reflected`. `eps = -sigma score`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewstep.core.condition import Condition
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, expand
from fewstep.denoisers.network import NetworkDenoiser

if TYPE_CHECKING:
    from fewstep.processes.reflected import Reflected

# Noise below this counts as this: the exact score of a data set grows like 1 / sigma^2.
_LEAST = 1e-6
# A cosine series leaves rounding errors of 1e-16: below this density its score is taken to fall to zero.
_RARE = 1e-9

METHODS = (
    Method(
        "reflected-dataset",
        paper="Statistical guarantees for denoising reflected diffusion models (Holk, Strauch and Trottner, 2024)",
        arxiv="2411.01563",
        claim="the exact score of a data set in the cube whose walls are mirrors",
        use="ReflectedDataset",
    ),
    Method(
        "reflected-density",
        paper="Statistical guarantees for denoising reflected diffusion models (Holk, Strauch and Trottner, 2024)",
        arxiv="2411.01563",
        claim="exact score, likelihood and samples of a product of cosine series",
        use="ReflectedDensity",
    ),
    Method(
        "reflected-network",
        paper="Reflected Diffusion Models (Lou and Ermon, 2023)",
        arxiv="2304.04740",
        claim="a network whose samples stay in the range of the data, trained on the exact kernel's score",
        use="ReflectedNetwork",
    ),
)


def _checked(process: Reflected) -> Reflected:
    if process.name != "reflected":
        raise ValueError(f"a reflected denoiser needs the process Reflected(), got {process.name!r}")
    return process


class ReflectedDataset(Denoiser):
    """The score of `p_t(y) = mean_i prod_d kernel(y_d | x_id)` over the data `(N, *shape)`, all in [0, 1].

    It is what a network that memorises perfectly would predict. Memory: B N D numbers per evaluation, D the product of
    `shape`. Raises ValueError for data outside the cube.
    """

    process: Reflected

    def __init__(self, data: Tensor, process: Reflected):
        super().__init__()
        if data.ndim < 2 or not len(data):
            raise ValueError(f"data must be (N, *shape) with N at least 1, got shape {tuple(data.shape)}")
        if not bool(((data >= 0) & (data <= 1)).all()):
            raise ValueError(f"data must lie in [0, 1], got {float(data.min()):g} to {float(data.max()):g}")
        self.process, self.shape, self.value_range = _checked(process), tuple(data.shape[1:]), (0.0, 1.0)
        self.register_buffer("data", data.flatten(1).double())
        self.data: Tensor

    def config(self) -> dict[str, Any]:
        return {"shape": self.shape, "process": self.process}

    @classmethod
    def from_config(cls, options: dict[str, Any], state: Mapping[str, Tensor]) -> ReflectedDataset:
        return cls(state["data"].reshape(-1, *options["shape"]), options["process"])

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        std = self.process.sigma(t).clamp_min(_LEAST).reshape(-1, 1, 1)
        logs, slopes = self.process.kernel(x.flatten(1).double().unsqueeze(1), self.data, std)  # (B, N, D)
        share = torch.softmax(logs.sum(-1), dim=1).unsqueeze(1)
        eps = -(share @ slopes).reshape(x.shape).to(x.dtype)
        return Prediction(eps, "eps", x, t, self.process)

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        return self.process.fold(x)[0]


class ReflectedDensity(Denoiser):
    """The product over d of `p_d(x) = 1 + sum_n c_dn cos(n pi x)` on [0, 1], n from 1 to N.

    The cosines are the eigenfunctions of the reflected motion, so after noise sigma the coefficients are
    `c_dn exp(-n^2 pi^2 sigma^2 / 2)`, and score and likelihood are exact at every noise level.

    Args:
        coefficients: (D, N); a sample has shape (D,). Raises ValueError where a density is negative.
    """

    process: Reflected

    def __init__(self, coefficients: Tensor, process: Reflected):
        super().__init__()
        c = torch.as_tensor(coefficients, dtype=torch.float64)
        if c.ndim != 2:
            raise ValueError(f"coefficients must be (D, N), got shape {tuple(c.shape)}")
        self.process, self.shape, self.value_range = _checked(process), (len(c),), (0.0, 1.0)
        self.register_buffer("coefficients", c)
        self.register_buffer("frequencies", math.pi * torch.arange(1, c.shape[1] + 1, dtype=torch.float64))
        self.coefficients: Tensor
        self.frequencies: Tensor
        grid = torch.linspace(0, 1, 64 * c.shape[1] + 1, dtype=torch.float64).unsqueeze(1).expand(-1, len(c))
        if float((least := self._density(grid, torch.zeros((), dtype=torch.float64))[0]).min()) < -1e-12:
            raise ValueError(
                f"the density of these coefficients falls to {float(least.min()):g}: it must not be negative"
            )

    def config(self) -> dict[str, Any]:
        return {"process": self.process}

    @classmethod
    def from_config(cls, options: dict[str, Any], state: Mapping[str, Tensor]) -> ReflectedDensity:
        return cls(state["coefficients"], options["process"])

    def _density(self, x: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Density and its derivative, each of x's shape (B, D)."""
        angle = x.double().unsqueeze(-1) * self.frequencies
        c = self.coefficients * (-0.5 * (self.frequencies * std.reshape(-1, 1, 1)) ** 2).exp()
        return 1 + (c * angle.cos()).sum(-1), -(c * self.frequencies * angle.sin()).sum(-1)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        std = self.process.sigma(t)
        density, slope = self._density(x, std)
        eps = -expand(std, density) * slope / density.clamp_min(_RARE)
        return Prediction(eps.to(x.dtype), "eps", x, t, self.process)

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        return self.process.fold(x)[0]

    def log_likelihood(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """`log p_t(x)` `(B,)` in nats on the cube; t defaults to the clean data's time."""
        std = torch.zeros((), dtype=torch.float64) if t is None else self.process.sigma(t)
        return self._density(x, std)[0].log().sum(-1)

    def cumulative(self, x: Tensor) -> Tensor:
        """The distribution function of every coordinate of clean data: x (B, D) in [0, 1] to (B, D) in [0, 1]."""
        angle = x.double().unsqueeze(-1) * self.frequencies
        return x + (self.coefficients / self.frequencies * angle.sin()).sum(-1)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n exact samples (n, D) of the data, by bisection of the distribution function."""
        generator = torch.Generator().manual_seed(seed)
        u = torch.rand(n, len(self.coefficients), generator=generator, dtype=torch.float64)
        low, high = torch.zeros_like(u), torch.ones_like(u)
        for _ in range(52):
            middle = 0.5 * (low + high)
            above = self.cumulative(middle) > u
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return 0.5 * (low + high)


class ReflectedNetwork(NetworkDenoiser):
    """A network as the denoiser of reflected diffusion; data lie in `value_range`, the walls of their cube.

    The network sees the folded state, scaled to [-1, 1], and the process time; its answer changes sign behind an odd
    number of mirrors, which gives eps the symmetry of the exact one. `encode` maps data to the cube: train on
    `model.encode(data)`. The target is the score of the exact kernel, `-sigma d/dy log p(y | x0)`, whose mean given y
    is `-sigma` times the score (Lou and Ermon, 2023, section 4); far from the walls it is eps itself.
    """

    process: Reflected

    def __init__(
        self,
        network: nn.Module,
        process: Reflected,
        predicts: str = "eps",
        shape: tuple[int, ...] | None = None,
        conditions: Mapping[str, Condition] | None = None,
        precondition: str = "none",
        data_std: float = 0.5,
        value_range: tuple[float, float] | None = (-1.0, 1.0),
        data: str | None = None,
    ):
        if predicts != "eps" or precondition != "none":
            raise ValueError(
                f"a reflected network predicts 'eps', not preconditioned, got {predicts!r}, {precondition!r}"
            )
        super().__init__(
            network, _checked(process), predicts, shape, conditions, precondition, data_std, value_range, data
        )
        if value_range is None:
            raise ValueError("a reflected network needs the range of its data: value_range=(low, high)")
        self.low, self.high = value_range

    def encode(self, data: Tensor, **condition: Any) -> Tensor:
        return (data - self.low) / (self.high - self.low)

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        low, high = self.value_range or (0.0, 1.0)
        return (low + (high - low) * self.process.fold(x)[0]).clamp(
            low, high
        )  # the last bit of high - low may be too large

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        inside, slope = self.process.fold(x)
        return Prediction(slope * self._call(2 * inside - 1, t, condition), "eps", x, t, self.process)

    def loss_pair(self, x0: Tensor, eps: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        std = self.process.sigma(t)
        inside, _ = self.process.fold(x0 + expand(std, x0) * eps)
        wide = std.clamp_min(_LEAST).reshape(-1, *[1] * (x0.ndim - 1))
        _, slope = self.process.kernel(inside.double(), x0.double(), wide)
        return self._call(2 * inside - 1, t, condition), -slope.to(x0.dtype)
