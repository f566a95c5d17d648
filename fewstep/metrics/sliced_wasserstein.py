"""Sliced Wasserstein distance: the exact one-dimensional distance, averaged over fixed directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.metrics.common import Result
from fewstep.metrics.features import Features, feature_pair, find_features

METHODS = (
    Method(
        "sliced-wasserstein",
        paper="Sliced and Radon Wasserstein Barycenters of Measures (Bonneel et al., 2015)",
        claim="exact in one dimension for any two sizes; a shift d in F dimensions gives |d| / sqrt(F)",
        use="sliced_wasserstein",
        facts={"needs": ("data",), "better": "low"},
    ),
)


@dataclass(frozen=True)
class SlicedWasserstein(Result):
    """`value`: root mean square, over `projections` directions, of the 2-Wasserstein distance along each."""

    n_real: int
    features: str
    projections: int


def sliced_wasserstein(
    samples: Tensor,
    real: Tensor,
    features: str | Features | Callable[[Tensor], Tensor] = "pixels",
    projections: int = 256,
    seed: int = 0,
) -> SlicedWasserstein:
    """Sliced 2-Wasserstein distance between `samples` (N, *shape) and `real` (M, *shape), in feature space.

    The directions depend on `seed` and the dimension alone, so values can be compared. They come as random
    orthonormal frames: with a multiple of F directions a shift of the mean is measured without error. Raises
    ValueError as `frechet` does, and for fewer than one projection.
    """
    if projections < 1:
        raise ValueError(f"projections must be at least 1, not {projections}")
    found = find_features(features)
    a, b = feature_pair(samples, real, found)
    directions = _directions(a.shape[1], projections, seed)
    squared = torch.cat([_squared_w2(a @ part, b @ part) for part in directions.split(64, dim=1)])
    return SlicedWasserstein(squared.mean().sqrt().item(), len(a), len(b), found.name, projections)


def _directions(dim: int, count: int, seed: int) -> Tensor:
    """Unit vectors as columns (F, count): frames of up to F orthonormal ones, each drawn afresh."""
    generator = torch.Generator().manual_seed(seed)
    frames: list[Tensor] = []
    while (left := count - sum(frame.shape[1] for frame in frames)) > 0:
        normal = torch.randn(dim, min(dim, left), generator=generator, dtype=torch.float64)
        frame, triangle = torch.linalg.qr(normal)
        # The sign makes the frame uniform over rotations; a direction and its opposite measure the same, but
        # different LAPACKs choose different ones.
        frames.append(frame * triangle.diagonal().sign())
    return torch.cat(frames, dim=1)


def _squared_w2(a: Tensor, b: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of the columns of (N, P) and (M, P): (P,).

    The integral of the squared difference of the two quantile functions. Both are steps, N of width 1/N and M
    of width 1/M: on the union of their breaks, counted in units of 1/(N M), the sum is exact.
    """
    a, b = a.sort(0).values, b.sort(0).values
    n, m = len(a), len(b)
    breaks = torch.cat([torch.arange(n + 1) * m, torch.arange(1, m) * n]).unique()
    start, width = breaks[:-1], breaks.diff().double() / (n * m)
    return width @ (a[start // m] - b[start // n]).square()
