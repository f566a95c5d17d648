"""Couplings: which noise in a batch goes with which sample.

A coupling is `name(x0, eps, generator, **options) -> eps`, all `(B, *shape)`, called before the noise levels are drawn.
Where paths cross at random, the network averages over them, and the sampler's path bends. Assigned noise crosses less.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.core.methods import Method, made
from fewstep.training.fit import Coupling

METHODS = (
    Method(
        "independent-coupling",
        kind="coupling",
        paper="Denoising Diffusion Probabilistic Models (Ho et al., 2020)",
        arxiv="2006.11239",
        claim="each sample keeps the noise it was drawn with",
        use="independent",
    ),
    Method(
        "minibatch-ot",
        kind="coupling",
        paper="Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport"
        " (Tong et al., 2024)",
        arxiv="2302.00482",
        claim="paths that cross less within a batch, so that they are straighter",
        use="optimal_transport",
    ),
    Method(
        "immiscible",
        kind="coupling",
        paper="Immiscible Diffusion: Accelerating Diffusion Training with Noise Assignment (Li et al., 2024)",
        arxiv="2406.12303",
        claim="assigns the batch's noise by distance in half precision; pooled noise stays Gaussian",
        use="immiscible",
    ),
    Method(
        "immiscible-knn",
        kind="coupling",
        paper="Improved Immiscible Diffusion: Accelerate Diffusion Training by Reducing Its Miscibility"
        " (Li et al., 2025)",
        arxiv="2505.18521",
        claim="each sample takes the nearest of a few noises: no assignment, memory linear in the batch",
        use="immiscible_knn",
    ),
)

# A cost matrix of 4096 x 4096 float64 is 128 MiB, and assigning it takes seconds; both grow faster than the batch.
LARGEST = 4096


def coupling(name: str, **options: Any) -> Coupling:
    """The coupling of a registered name, with its options set: `coupling("immiscible", bits=8)`.

    Raises ValueError for an unknown name, option or value, with the close ones.
    """
    found = made("coupling", name, 3, **options)
    found(torch.zeros(2, 1), torch.ones(2, 1), torch.Generator())  # a wrong value fails at once, not in the first step
    return found


def independent(x0: Tensor, eps: Tensor, generator: torch.Generator) -> Tensor:
    """The noise as it was drawn."""
    return eps


def optimal_transport(x0: Tensor, eps: Tensor, generator: torch.Generator) -> Tensor:
    """The permutation of the batch's noise with the least mean `|x0 - eps|^2`: exact transport within the batch.

    The sum of squared norms does not depend on the permutation, so the cost is `-<x0, eps>`, in float64 (Tong et al.,
    section 3.2.3; also Pooladian et al., 2023, arXiv:2304.14772). ValueError for batches of more than 4096.
    """
    a, b = _flat(x0, eps)
    return eps[assignment(-(a.double() @ b.double().T))]


def immiscible(x0: Tensor, eps: Tensor, generator: torch.Generator, bits: int = 16) -> Tensor:
    """The permutation of the batch's noise with the least mean distance `|x0 - eps|`, from rounded numbers.

    bits: 32 takes samples and noise as they are, 16 rounds both to half precision (the paper's), 2 to 8 to that many
    bits: whole steps between the smallest and the largest value of each. The noise itself is never rounded.

    Raises ValueError for other bits and for batches of more than 4096.
    """
    a, b = (_rounded(part, bits) for part in _flat(x0, eps))
    return eps[assignment(torch.cdist(a, b))]


def immiscible_knn(x0: Tensor, eps: Tensor, generator: torch.Generator, k: int = 4) -> Tensor:
    """For every sample the nearest of k noises: its own and k - 1 fresh ones.

    No permutation, so the pooled noise is no longer exactly Gaussian: it is biased towards the data, the less the more
    dimensions there are and the smaller k. Takes k times the batch in memory. ValueError for k below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1 noise per sample, got {k}")
    flat = x0.flatten(1).float()
    best, nearest = eps, (flat - eps.flatten(1).float()).square().sum(1)
    for _ in range(k - 1):
        other = torch.randn(eps.shape, generator=generator, dtype=eps.dtype, device=generator.device).to(eps.device)
        distance = (flat - other.flatten(1).float()).square().sum(1)
        closer = (distance < nearest).view(-1, *[1] * (eps.ndim - 1))
        best, nearest = torch.where(closer, other, best), torch.minimum(distance, nearest)
    return best


def assignment(cost: Tensor) -> Tensor:
    """The permutation `p`, (B,), with the least `sum_i cost[i, p_i]` of a square cost matrix, found exactly on the CPU.

    Raises ValueError for more than 4096 rows.
    """
    from scipy.optimize import linear_sum_assignment

    if len(cost) > LARGEST:
        raise ValueError(
            f"assigning a batch of {len(cost)} takes a cost matrix of {len(cost) ** 2 * 8 / 2**30:.1f} GiB and minutes:"
            f" couple at most {LARGEST} at once, or use 'immiscible-knn', whose memory grows with the batch alone"
        )
    _, columns = linear_sum_assignment(cost.detach().double().cpu().numpy())
    return torch.from_numpy(columns).to(cost.device)


def _flat(x0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    if x0.shape != eps.shape:
        raise ValueError(f"samples and noise must have one shape, got {tuple(x0.shape)} and {tuple(eps.shape)}")
    if len(x0) > LARGEST:  # before the matrix is allocated
        assignment(torch.empty(len(x0), 0))
    return x0.detach().flatten(1), eps.detach().flatten(1)


def _rounded(x: Tensor, bits: int) -> Tensor:
    if bits == 32:
        return x.float()
    if bits == 16:
        return x.half().float()
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 32, 16, or 2 to 8, got {bits}")
    low, high = x.min(), x.max()
    step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(torch.float32).tiny)
    return ((x - low) / step).round() * step + low
