"""Frechet distance between samples and real data, and between two parts of the real data as its floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.metrics.common import Result
from fewstep.metrics.features import Features, feature_pair, find_features

METHODS = (
    Method(
        "frechet",
        paper="GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017)",
        arxiv="1706.08500",
        claim="the closed form on Gaussians, and a floor of real against real at equal n",
        use="frechet",
        facts={"needs": ("data",), "better": "low", "held_out": True},
    ),
)


@dataclass(frozen=True)
class Frechet(Result):
    """A Frechet distance: of `n` samples to `n_real` real rows, in the space of `features`.

    `floor` is the distance of `floor_n` of the real rows to the other `n_real - floor_n`: the score of samples that
    are themselves real data. It is None with fewer than four real rows. The distance of finite sets is
    biased upwards, more so for small ones: read a value against its floor, and where `floor_n < n` (fewer
    than 2n real rows) the floor is on the high side.
    """

    n_real: int
    features: str
    floor: float | None
    floor_n: int


@dataclass(frozen=True)
class Moments:
    """Count, mean `(F,)` and scatter `(F, F)`, the sum of `(x - mean) (x - mean)^T`, of rows `(N, F)`, in float64."""

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """Those of some rows `(N, F)`, at least one."""
        mean = rows.mean(0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def merged(self, other: Self) -> Self:
        """Those of both sets of rows together, without the rows.

        With d the difference of the means, the scatter is `S_a + S_b + d d^T n_a n_b / (n_a + n_b)`: no large numbers
        cancel (Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983).
        """
        n, apart = self.n + other.n, other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(apart, apart) * (self.n * other.n / n)
        return type(self)(n, self.mean + apart * (other.n / n), scatter)

    @property
    def covariance(self) -> Tensor:
        """The unbiased one; `ValueError` for a single row."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.n}")
        return self.scatter / (self.n - 1)


def frechet(
    samples: Tensor,
    real: Tensor,
    features: str | Features | Callable[[Tensor], Tensor] = "pixels",
    seed: int = 0,
) -> Frechet:
    """Frechet distance of Gaussians fitted to features of `samples` (N, *shape) and `real` (M, *shape).

    `features` is a name ("pixels", "digits"), a `Features`, or a function (B, *shape) -> (B, F). `seed` draws
    the rows of the floor. Raises ValueError for values that are not finite, fewer than two rows, different
    shapes, and unknown features.
    """
    found = find_features(features)
    a, b = feature_pair(samples, real, found)
    return frechet_of(Moments.of(a), b, found.name, seed)


def frechet_of(samples: Moments, real: Tensor, features: str, seed: int = 0) -> Frechet:
    """`frechet` of samples of which the moments are known, against vectors `(M, F)` of real rows; `features` names
    their space."""
    floor, floor_n = None, min(samples.n, len(real) // 2)
    if floor_n >= 2:
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
        floor = _between(Moments.of(real[order[:floor_n]]), Moments.of(real[order[floor_n:]]))
    else:
        floor_n = 0
    return Frechet(_between(samples, Moments.of(real)), samples.n, len(real), features, floor, floor_n)


def gaussian_frechet(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared 2-Wasserstein distance of two Gaussians: means (F,), covariances (F, F), also singular.

        |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr sqrt(S_a^1/2 S_b S_a^1/2)      (Dowson and Landau, 1982)

    The last trace is the sum of the singular values of S_a^1/2 S_b^1/2. That never forms the product S_a S_b,
    so its small eigenvalues keep their digits, and a singular covariance needs no offset on its diagonal.
    """
    mean_a, cov_a, mean_b, cov_b = (x.detach().to("cpu", torch.float64) for x in (mean_a, cov_a, mean_b, cov_b))
    dim = mean_a.numel()
    if not mean_a.shape == mean_b.shape == (dim,) or not cov_a.shape == cov_b.shape == (dim, dim):
        shapes = [tuple(x.shape) for x in (mean_a, cov_a, mean_b, cov_b)]
        raise ValueError(f"means must be (F,) and covariances (F, F), both the same F, not {shapes}")
    if not all(torch.isfinite(x).all() for x in (mean_a, cov_a, mean_b, cov_b)):
        raise ValueError("means and covariances must be finite")
    overlap = torch.linalg.svdvals(_root(cov_a) @ _root(cov_b)).sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    return max(0.0, distance.item())  # equal Gaussians cancel to rounding error of either sign


def _between(a: Moments, b: Moments) -> float:
    """The distance of two sets of rows, with unbiased covariances."""
    return gaussian_frechet(a.mean, a.covariance, b.mean, b.covariance)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root. Eigenvalues of rounding size count as zero: their roots would not be small."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    rounding = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    values = torch.where(values > rounding, values, torch.zeros_like(values))
    return (vectors * values.sqrt()) @ vectors.T
