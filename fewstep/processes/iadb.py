"""Alpha-blending: the straight line between two densities, neither of which need be Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.processes.flow import Flow

METHODS = (
    Method(
        "iadb",
        paper="Iterative α-(de)Blending: a Minimalist Deterministic Diffusion Model (Heitz et al., 2023)",
        arxiv="2305.03486",
        claim="the straight line between samples of any two densities",
        use="AlphaBlending",
    ),
)

_COMPONENT = -1  # number of the draw that chooses a component; 1, 2, ... are the steps'


@dataclass(frozen=True)
class AlphaBlending(Flow):
    """`x_t = (1 - t) x0 + t x1`, x0 from the data and x1 from another density, which takes the place of the noise.

    A denoiser's `x0` is E[x0 | x_t], its `eps` E[x1 | x_t], and its `flow` E[x1 - x0 | x_t] with the sign of falling
    t (the paper's D is `x0 - x1`, its alpha is 1 - t); any of the three may be trained and gives the others. DDIM's
    step is the paper's `x + d(alpha) D`, and every other solver of the ODE applies as well.

    x1 comes from a mixture of isotropic normals, by default the standard normal. From any other density, give its
    samples to the plan, `plan(model, x1)`, and train with `fewstep.denoisers.interpolant.drawn_from(samples)`.

    weights: (K,) positive. means: K numbers, or K D for samples of D numbers, component after component. stds: (K,).
    """

    name = "iadb"
    weights: tuple[float, ...] = ()
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        k = len(self.weights)
        sizes = len(self.stds) == k and (len(self.means) % k == 0 < len(self.means) if k else not self.means)
        if not sizes or not all(0 < v < math.inf for v in (*self.weights, *self.stds)):
            raise ValueError(
                "the other density needs K positive weights, K positive stds and K or K D means, got"
                f" {self.weights}, {self.stds} and {len(self.means)} means"
            )

    def _mixture(self, normal: Tensor, choice: Tensor) -> Tensor:
        """Samples (B, *shape) from standard normals of that shape; `choice`, also normal, picks the components."""
        k, size = len(self.weights), normal[0].numel()
        if not k:
            return normal
        if len(self.means) not in (k, k * size):
            raise ValueError(f"samples of {size} numbers need {k} or {k * size} means, got {len(self.means)}")
        edges = torch.tensor(self.weights, dtype=torch.float64, device=normal.device).cumsum(0)
        share = torch.special.ndtr(choice.flatten(1)[:, :1].double()) * edges[-1]
        component = torch.searchsorted(edges[:-1], share, right=True).squeeze(1)
        means = torch.tensor(self.means, dtype=normal.dtype, device=normal.device).view(k, -1)[component]
        stds = torch.tensor(self.stds, dtype=normal.dtype, device=normal.device)[component]
        return (means + stds.unsqueeze(1) * normal.flatten(1)).view_as(normal)

    def start(self, normal: Callable[[int], Tensor]) -> Tensor:
        """Samples x1 (B, *shape), each from its own stream."""
        return self._mixture(normal(0), normal(_COMPONENT)) if self.weights else normal(0)

    def eps(self, normal: Callable[[], Tensor]) -> Tensor:
        """Samples x1 (B, *shape) for training."""
        first = normal()
        return self._mixture(first, normal()) if self.weights else first
