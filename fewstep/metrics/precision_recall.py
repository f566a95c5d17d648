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
    if not 1 <= k < min(len(a), len(b)):
        raise ValueError(
            f"k must be from 1 to one less than the smaller set ({len(a)} samples, {len(b)} real), not {k}"
        )
    radius_a, radius_b = _radii(a, k), _radii(b, k)
    inside_real, inside_samples, nearest = [], [], torch.full((len(b),), torch.inf, dtype=torch.float64)
    for rows in a.split(CHUNK):
        distances = _distances(rows, b)
        inside_real.append((distances <= radius_b).sum(1))
        nearest = torch.minimum(nearest, distances.amin(0))
    for rows in b.split(CHUNK):
        inside_samples.append((_distances(rows, a) <= radius_a).any(1))
    balls = torch.cat(inside_real).double()
    precision, recall = (balls > 0).double().mean().item(), torch.cat(inside_samples).double().mean().item()
    return PrecisionRecall(
        value=2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        n=len(a),
        precision=precision,
        recall=recall,
        density=balls.mean().item() / k,
        coverage=(nearest <= radius_b).double().mean().item(),
        n_real=len(b),
        features=found.name,
        k=k,
    )


def _radii(rows: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th neighbour: the k+1 smallest count the row itself, at zero."""
    return torch.cat([_distances(part, rows).kthvalue(k + 1, dim=1).values for part in rows.split(CHUNK)])


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # By differences: the matrix product puts equal rows 1e-7 apart, and ties at a radius decide these counts.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
