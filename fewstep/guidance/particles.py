"""Weighted particles in groups: weights in log space, their effective number, and systematic resampling.

Nothing here knows of models or plans. A group is the last axis of a tensor of log weights `(..., k)`; weights need not
be normalised, groups never meet, and what is random comes in as uniform numbers, one for each group.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def effective(log_weights: Tensor) -> Tensor:
    """The effective number of particles `(...)` of log weights `(..., k)`: `(sum w)^2 / sum w^2`, from 1 to k."""
    return (2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp()


def log_mean(log_weights: Tensor) -> Tensor:
    """The logarithm of the mean weight `(...)`."""
    return log_weights.logsumexp(-1) - math.log(log_weights.shape[-1])


def chosen(log_weights: Tensor, at: Tensor) -> Tensor:
    """The particles `(..., m)` at the quantiles `at` `(..., m)`, in [0, 1), of weights laid end to end."""
    edges = log_weights.double().softmax(-1).cumsum(-1)
    edges = edges / edges[..., -1:]  # the last one is 1 whatever the rounding, so that no quantile lies beyond
    below = at.to(edges).clamp(max=1 - 2.0**-53).contiguous()
    found = torch.searchsorted(edges, below, right=True)
    return found.clamp(max=log_weights.shape[-1] - 1)


def drawn(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """One particle `(...)` of each group `(..., k)`, by its weight, from a uniform number `(...)`."""
    return chosen(log_weights, uniform.unsqueeze(-1)).squeeze(-1)


def systematic(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """The ancestors `(..., k)` of new particles of equal weights, in rising order, from a uniform number `(...)`.

    Systematic resampling (Carpenter, Clifford and Fearnhead, 1999): the quantiles `(j + u) / k`. A particle of weight w
    has `k w` children, rounded down or up, and `k w` on average.
    """
    k = log_weights.shape[-1]
    places = torch.arange(k, dtype=torch.float64, device=log_weights.device)
    return chosen(log_weights, (places + uniform.double().unsqueeze(-1)) / k)


def resampled(log_weights: Tensor, uniform: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Resampling of the groups `(n, k)` whose effective number is below `threshold` times k; nothing is read back.

    Returns the ancestors `(n, k)` (each particle itself where a group stays as it is), the new log weights, what
    each group adds to the logarithm of its normaliser `(n,)`, and which groups were resampled, `(n,)` bools. The
    product of the factors and the final mean weight is unbiased whatever the threshold.
    """
    k = log_weights.shape[-1]
    which = effective(log_weights) < threshold * k
    own = torch.arange(k, device=log_weights.device).expand_as(log_weights)
    index = torch.where(which.unsqueeze(-1), systematic(log_weights, uniform), own)
    fresh = torch.where(which.unsqueeze(-1), torch.zeros_like(log_weights), log_weights)
    gained = log_mean(log_weights)
    return index, fresh, torch.where(which, gained, torch.zeros_like(gained)), which
