"""Noise levels in groups: contiguous clusters that are optimal for a cost, and losses and gradients level by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.mode import evaluating
from fewstep.core.process import Process
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.noise_levels import FURTHEST
from fewstep.training.objective import Objective

METHODS = (
    Method(
        "interval-clusters",
        kind="clusters",
        paper="Addressing Negative Transfer in Diffusion Models (Go et al., 2023)",
        arxiv="2306.00354",
        claim="noise levels in k contiguous clusters of least cost: time, log-SNR or gradient affinity",
        use="clusters",
    ),
)

COSTS = ("time", "log-snr")
GRID = 128  # levels that represent all; a cluster may end between any two


def interval_clusters(gram: Tensor, k: int) -> list[int]:
    """Splits points in sequence into k contiguous clusters of least scatter: the starts of clusters 1 to k - 1, rising.

    gram: (n, n) inner products of the points. A cluster of m points costs the sum of their squared distances from
    their mean, `trace - sum / m` of its block, so for unit vectors it is `m (1 - mean cosine)`. The optimum is found
    by dynamic programming in O(k n^2); of equal optima, the one with the earliest last start.

    Raises ValueError for a gram that is not square and for k outside 1 to n.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"gram must be (n, n), got shape {tuple(gram.shape)}")
    n = len(gram)
    if not 1 <= k <= n:
        raise ValueError(f"{n} points make 1 to {n} clusters, got k={k}")
    gram = gram.detach().double().cpu()
    block = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    block[1:, 1:] = gram.cumsum(0).cumsum(1)
    trace = torch.cat([torch.zeros(1, dtype=torch.float64), gram.diagonal().cumsum(0)])
    corner = block.diagonal()
    # cost[i, j] of points i to j - 1; infinite where there are none
    total = corner[None, :] - block - block.T + corner[:, None]
    size = torch.arange(n + 1, dtype=torch.float64)[None, :] - torch.arange(n + 1, dtype=torch.float64)[:, None]
    cost = torch.where(size > 0, trace[None, :] - trace[:, None] - total / size.clamp_min(1), torch.inf)
    best, starts = cost[0].clone(), []
    for _ in range(k - 1):
        best, start = (best[:, None] + cost).min(0)
        starts.append(start)
    cuts, end = [], n
    for start in reversed(starts):
        end = int(start[end])
        cuts.append(end)
    return cuts[::-1]


def clusters(
    process: Process, k: int, cost: str | Tensor = "log-snr", levels: Tensor | None = None
) -> tuple[float, ...]:
    """The k - 1 times, rising, at which the noise levels are cut into k clusters.

    Args:
        cost: "time" or "log-snr": squared distance of this number from the cluster's mean; or an affinity (n, n) of the
            levels, as `affinity` returns it.
        levels: the n levels that are clustered, rising; by default 128, evenly from t_min to t_max.

    Raises:
        ValueError: an unknown cost, an affinity without its levels or of another size.
    """
    if levels is None:
        if isinstance(cost, Tensor):
            raise ValueError("an affinity needs the levels (n,) at which it was taken")
        levels = torch.linspace(process.t_min, process.t_max, GRID, dtype=torch.float64)
    levels = levels.double().cpu()
    if levels.ndim != 1 or not bool((levels.diff() > 0).all()):
        raise ValueError(f"levels must be rising times (n,), got shape {tuple(levels.shape)}")
    if isinstance(cost, Tensor):
        if cost.shape != (len(levels), len(levels)):
            raise ValueError(f"an affinity of {len(levels)} levels is square, got shape {tuple(cost.shape)}")
        gram = cost
    elif cost in COSTS:
        values = levels if cost == "time" else process.log_snr(levels).clamp(-FURTHEST, FURTHEST)
        values = values - values.mean()  # squares of small numbers: no cancellation
        gram = values[:, None] * values
    else:
        raise suggest("cost of clusters", cost, COSTS)
    cuts = interval_clusters(gram, k)
    return tuple(0.5 * float(levels[cut - 1] + levels[cut]) for cut in cuts)


def cluster_of(t: Tensor, cuts: Sequence[float]) -> Tensor:
    """The number of the cluster of each time, 0 the least noise: int64, of t's shape. A cut: the noisier one's."""
    return torch.bucketize(t, torch.tensor(cuts, dtype=t.dtype, device=t.device), right=True)


def _level_rows(
    denoiser: NetworkDenoiser, data: Tensor, seed: int, **condition: Tensor
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Noise for every sample, the same at each level, and the conditions."""
    generator = torch.Generator().manual_seed(seed)
    eps = denoiser.process.eps(lambda: torch.randn(data.shape, generator=generator))
    return eps.to(data), denoiser.check_condition(condition, len(data), data.device)


@torch.no_grad()
def level_losses(
    denoiser: NetworkDenoiser,
    data: Tensor,
    levels: Tensor,
    objective: Objective | None = None,
    seed: int = 0,
    **condition: Tensor,
) -> Tensor:
    """Mean loss over data (N, *shape) at each time of levels (L,): (L,) float64. All levels share the same noise."""
    eps, named = _level_rows(denoiser, data, seed, **condition)
    measured = objective or Objective(denoiser)
    with evaluating(denoiser):
        found = [measured(data, eps, t.double().expand(len(data)), named).double().mean() for t in levels]
    return torch.stack(found)


def affinity(
    denoiser: NetworkDenoiser,
    data: Tensor,
    levels: Tensor,
    objective: Objective | None = None,
    seed: int = 0,
    **condition: Tensor,
) -> Tensor:
    """Cosines between the gradients of the mean loss over data (N, *shape) at the times of levels (L,): (L, L).

    The gradients are those of all trained parameters. A level without gradient has affinity 0 to the others.
    """
    eps, named = _level_rows(denoiser, data, seed, **condition)
    measured = objective or Objective(denoiser)
    parameters = [p for p in denoiser.parameters() if p.requires_grad]
    rows = []
    for t in levels:
        loss = measured(data, eps, t.double().expand(len(data)), named).mean()
        gradient = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        rows.append(torch.nn.functional.normalize(torch.cat([g.flatten() for g in gradient]).double(), dim=0))
    stacked = torch.stack(rows)
    return stacked @ stacked.T
