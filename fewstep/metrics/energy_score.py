"""The energy score: how far draws of a posterior are from the truth, with their own spread counted in their favour."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.metrics.common import Result, check_same_kind, check_samples

METHODS = (
    Method(
        "energy-score",
        paper="Strictly Proper Scoring Rules, Prediction, and Estimation (Gneiting and Raftery, 2007)",
        claim="least on average for draws of the true posterior; no posterior need be known",
        use="energy_score",
        facts={"needs": ("pairs",), "better": "low"},
    ),
)


@dataclass(frozen=True)
class EnergyScore(Result):
    """`value`: the mean of `E|x - x*| - E|x - x'| / 2` over the truths x*, norms being those of whole samples.

    `error` is its standard error over the truths, `draws` the draws of each.
    """

    error: float
    draws: int


def energy_score(samples: Tensor, originals: Tensor) -> EnergyScore:
    """The energy score of draws `(B, n, *shape)` against their truths `(B, *shape)`, unbiased, in float64.

    Draws `(B, *shape)` count as one each, whose score is the distance. Raises ValueError for values that are not finite
    and shapes that do not belong together.
    """
    samples, originals = check_samples(samples, "samples", 1), check_samples(originals, "originals", 1)
    check_same_kind(samples, originals, "samples", "originals")
    if samples.shape == originals.shape:
        samples = samples[:, None]
    if len(samples) != len(originals) or samples.shape[2:] != originals.shape[1:]:
        raise ValueError(
            f"draws are (B, n, *shape) of truths (B, *shape), got {tuple(samples.shape)} and {tuple(originals.shape)}"
        )
    n = samples.shape[1]
    draws, truth = samples.to("cpu").double().flatten(2), originals.to("cpu").double().flatten(1)
    scores = (draws - truth[:, None]).norm(dim=-1).mean(1)
    if n > 1:
        scores = scores - torch.cdist(draws, draws).sum((1, 2)) / (2 * n * (n - 1))
    spread = float(scores.std()) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    return EnergyScore(float(scores.mean()), len(scores), spread, n)
