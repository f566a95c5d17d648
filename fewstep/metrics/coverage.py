"""Whether the truth lies among draws of a posterior as often as it should: ranks and intervals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.metrics.common import check_samples


@dataclass(frozen=True)
class Coverage:
    """How truths rank among their draws.

    Args:
        ranks: `(n + 1,)`, how often so many of the n draws lie below the truth, over all truths and elements.
        chi_square: of these against equal counts; degrees: n. p: its tail probability, where the ranks are independent
            (one element a truth; elements of one sample are not).
        inside: how often the truth lies within the central interval of probability `interval`.
    """

    ranks: Tensor
    chi_square: float
    degrees: int
    p: float
    inside: float
    interval: float


def coverage(samples: Tensor, originals: Tensor, interval: float = 0.9, seed: int = 0) -> Coverage:
    """Of draws `(B, n, *shape)` and their truths `(B, *shape)`; ties are broken by chance.

    Raises ValueError for an interval outside 0 to 1 and shapes that do not belong together.
    """
    samples, originals = check_samples(samples, "samples", 1), check_samples(originals, "originals", 1)
    if not 0 < interval < 1:
        raise ValueError(f"interval must be between 0 and 1, got {interval}")
    if samples.ndim != originals.ndim + 1 or samples[:, 0].shape != originals.shape:
        raise ValueError(
            f"draws are (B, n, *shape) of truths (B, *shape), got {tuple(samples.shape)} and {tuple(originals.shape)}"
        )
    from scipy.stats import chi2

    n = samples.shape[1]
    truth = originals[:, None]
    below, equal = (samples < truth).sum(1), (samples == truth).sum(1)
    chance = torch.rand(below.shape, generator=torch.Generator().manual_seed(seed))
    ranks = below + (chance * (equal + 1)).floor().long()
    counts = torch.bincount(ranks.flatten(), minlength=n + 1).double()
    expected = counts.sum() / (n + 1)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    # The ranks that make up an interval of this probability, as near as n allows.
    cut = (1 - interval) / 2 * (n + 1)
    place = ranks.double() + 0.5
    inside = ((place > cut) & (place < n + 1 - cut)).double().mean()
    return Coverage(counts, chi_square, n, float(chi2.sf(chi_square, n)), float(inside), interval)
