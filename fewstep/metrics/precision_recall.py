"""Precision and recall of samples from nearest neighbours, and the related density and coverage."""

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
        "precision-recall",
        paper="Improved Precision and Recall Metric (Kynkaanniemi et al., 2019)",
        arxiv="1904.06991",
        claim="fidelity and variety separately: a lost mode costs recall, a stray sample precision",
        use="precision_recall",
        facts={"needs": ("data",), "better": "high"},
    ),
)

CHUNK = 1024  # rows of distances held at once


@dataclass(frozen=True)
class PrecisionRecall(Result):
    """`value` is the harmonic mean of `precision` and `recall`; all but `density` lie in [0, 1].

    precision: share of samples inside the real data's k-NN balls; recall: share of real rows inside the
    samples' balls (Kynkaanniemi et al.). density: mean number of real balls around a sample, over k, which
    can pass 1; coverage: share of real balls that hold a sample (Naeem et al., 2020, arXiv:2002.09797).
    """

    precision: float
    recall: float
    density: float
    coverage: float
    n_real: int
    features: str
    k: int


def precision_recall(
    samples: Tensor,
    real: Tensor,
    features: str | Features | Callable[[Tensor], Tensor] = "pixels",
    k: int = 3,
) -> PrecisionRecall:
    """Precision, recall, density and coverage of `samples` (N, *shape) against `real` (M, *shape).

    The ball of a row reaches to its k-th nearest neighbour in its own set, not counting itself, and is closed.
    Raises ValueError as `frechet` does, and unless 1 <= k < min(N, M).
    """
    found = find_features(features)
    a, b = feature_pair(samples, real, found)
    check_k(k, len(a), len(b))
    fidelity = inside(a, b, radii(b, b, k))
    return precision_recall_of(*fidelity, reached(a, b, radii(a, a, k)), found.name, k)


def precision_recall_of(inside: Tensor, nearest: Tensor, reached: Tensor, features: str, k: int) -> PrecisionRecall:
    """The figures from what `inside` and `reached` give, of one set of samples or joined over parts of it: `inside`
    one after another, the least of `nearest`, and any of `reached`."""
    precision, recall = (inside > 0).double().mean().item(), reached.double().mean().item()
    return PrecisionRecall(
        value=2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        n=len(inside),
        precision=precision,
        recall=recall,
        density=inside.double().mean().item() / k,
        coverage=(nearest <= 0).double().mean().item(),
        n_real=len(reached),
        features=features,
        k=k,
    )


def check_k(k: int, samples: int, real: int) -> None:
    """`ValueError` unless there is a k-th neighbour in both sets."""
    if not 1 <= k < min(samples, real):
        raise ValueError(f"k must be from 1 to one less than the smaller set ({samples} samples, {real} real), not {k}")


def inside(rows: Tensor, real: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """How many balls of real rows, of `radius` (M,), hold each of `rows`, (N,); and how far outside each ball the
    nearest of the rows is, (M,): at most 0 where the ball holds one."""
    counts, nearest = [], torch.full((len(real),), torch.inf, dtype=torch.float64)
    for part in rows.split(CHUNK):
        outside = _distances(part, real) - radius
        counts.append((outside <= 0).sum(1))
        nearest = torch.minimum(nearest, outside.amin(0))
    return torch.cat(counts), nearest


def reached(rows: Tensor, real: Tensor, radius: Tensor) -> Tensor:
    """Whether any ball of `rows`, of `radius` (N,), holds each real row: (M,)."""
    found = [(_distances(part, rows) <= radius).any(1) for part in real.split(CHUNK)]
    return torch.cat(found)


def radii(rows: Tensor, among: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th neighbour in a set it is one of: the k+1 smallest count itself, at zero."""
    return torch.cat([_distances(part, among).kthvalue(k + 1, dim=1).values for part in rows.split(CHUNK)])


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # By differences: the matrix product puts equal rows 1e-7 apart, and ties at a radius decide these counts.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
