"""Claims of fewstep/training/clusters.py."""

from __future__ import annotations

import itertools

import torch

from claims.common import F64, Claim, Outcome, over_seeds
from claims.level_tasks import WHAT, digits, plain
from fewstep.training.clusters import affinity, interval_clusters


def _brute_force(seed: int) -> Outcome:
    """The largest difference of the programme's cost from the least over all ways to cut twelve points."""

    def cost(points: torch.Tensor, cuts: tuple[int, ...]) -> float:
        parts = [points[a:b] for a, b in itertools.pairwise((0, *cuts, len(points)))]
        return sum(float((part - part.mean(0)).square().sum()) for part in parts)

    worst = 0.0
    for number in range(10):
        points = torch.randn(12, 3, generator=torch.Generator().manual_seed(100 * seed + number), dtype=F64)
        for k in (2, 3, 4):
            best = min(cost(points, cuts) for cuts in itertools.combinations(range(1, 12), k - 1))
            worst = max(worst, abs(cost(points, tuple(interval_clusters(points @ points.T, k))) - best))
    return Outcome(worst, 1e-9, "brute force, to this tolerance", "10 rows of 12 points, 2 to 4 clusters", unit="cost")


def _decay(seed: int) -> Outcome:
    def run(number: int) -> tuple[float, float]:
        found = affinity(plain(number), digits("train")[:512], torch.linspace(0.05, 0.95, 10), seed=number)
        return float(found.diagonal(1).mean()), float(found.diagonal(6).mean())

    about, unit = f"levels 0.1 apart in t; {WHAT}", "cosine of gradients"
    return over_seeds(seed, run, "levels 0.6 apart", about, better="high", unit=unit)


CLAIMS = (
    Claim("interval-clusters", "finds the clusters of least cost", _brute_force),
    Claim("interval-clusters", "gradients of near noise levels agree more than those of far ones", _decay, quick=False),
)
