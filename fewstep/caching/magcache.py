"""MagCache: all blocks stand while the magnitude of what they add, measured beforehand, has hardly changed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.caching.calibrate import for_plan, watched
from fewstep.caching.method import method
from fewstep.caching.parts import rest
from fewstep.caching.recipe import Recipe
from fewstep.caching.schedule import not_negative, share, whole_number
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.sampler import Sampler

METHODS = (
    Method(
        "magcache",
        kind="cache",
        paper="MagCache: Fast Video Generation with Magnitude-Aware Cache (Ma et al., 2025)",
        arxiv="2506.09045",
        claim="skips evaluations by how the magnitude of what the blocks add was measured to change over a plan",
        use="magcache",
        facts={"wraps": True, "network": "transformer", "plan": True},
    ),
)


@method("magcache")
def magcache(
    model: Denoiser,
    ratios: Sequence[float],
    times: Sequence[float],
    threshold: float = 0.06,
    most: int = 3,
    retention: float = 0.2,
    order: int = 1,
) -> Recipe:
    """The model, whose transformer leaves out all its blocks where what they add has hardly changed in magnitude.

    With the `ratios` g_n of magnitudes from evaluation to evaluation, which `calibrate` measures, reusing what was kept
    at evaluation m at the later one n is taken to be wrong by `|1 - g_(m+1) ... g_n|` (Ma et al., equation 8). The
    blocks stand while the sum of these errors since m is below the threshold, `most` times in a row at most. So the
    schedule is known before the run. With threshold 0 it is the model itself, bit for bit.

    Args:
        ratios, times: what `calibrate` gives: they hold for one plan. Every other is refused when it runs; one that
            starts in the middle has the rest of the schedule.
        threshold: of the error, summed. most: evaluations in a row at which the blocks stand.
        retention: the fraction of the run that is whole at first.
        order: of the forecast of what is kept; 1 is the paper's reuse.

    Raises:
        ValueError: a number outside its range, lists of different lengths, a network that is no transformer (a UNet has
            "deepcache"); a run of another plan, when it begins.
    """
    threshold, most, order = (
        not_negative("threshold", threshold),
        whole_number("most", most, 0),
        whole_number("order", order),
    )
    retention = share("retention", retention)
    if len(ratios) != len(times) or not times:
        raise ValueError(f"ratios and times must be as long as the plan, got {len(ratios)} and {len(times)}")
    if not all(isinstance(ratio, int | float) and ratio > 0 for ratio in ratios):
        raise ValueError(f"ratios of magnitudes must be above 0, got {list(ratios)}")
    part, skipped = rest(model, 0, 0), frozenset(_skipped(ratios, threshold, most, retention))

    check, before = for_plan(times)
    return Recipe(
        {part.name: part},
        lambda number, count: (part.name,) if number in skipped else (),
        order,
        never=not skipped,
        checks=check,
        offset=before,
    )


def _skipped(ratios: Sequence[float], threshold: float, most: int, retention: float) -> list[int]:
    """The evaluations at which the blocks stand."""
    found, error, product, row = list[int](), 0.0, 1.0, 0
    for number in range(max(1, int(retention * len(ratios) + 0.5)), len(ratios)):
        product *= ratios[number]
        error, row = error + abs(1 - product), row + 1
        if error < threshold and row <= most:
            found.append(number)
        else:
            error, product, row = 0.0, 1.0, 0
    return found


def calibrate(model: Denoiser, plan: Sampler, noises: Tensor, **condition: Any) -> dict[str, list[float]]:
    """The ratios for "magcache", in one run of the whole model: `fs.cache(model, "magcache", **calibrate(...))`.

    A ratio is the mean over tokens and samples of `|r_n| / |r_(n-1)|`, r what all blocks add to a token's channels (of
    a joint network to those of the picture); the first is 1.

    Args:
        noises: `(B, *shape)` to run from. condition: of the samples.

    Returns:
        `ratios` and the `times` of the plan that they hold for.

    Raises:
        ValueError: a network that is no transformer, a cached model, a sampler without a plan; under guidance one whose
            calls vary in their rows (calibrate the model inside).
    """
    part, store = rest(model, 0, 0), dict[str, Tensor]()
    ratios, before = [1.0], list[Tensor]()

    def read(found: Mapping[str, Tensor]) -> None:
        size = torch.linalg.vector_norm(found[part.name].float(), dim=-1)
        if before and before[-1].shape != size.shape:
            raise ValueError("the calls of the network vary in their rows: calibrate the model inside the guidance")
        before.append(size)

    watched(model, plan, noises, part.keeping(model, store), store, read, condition)
    ratios += [float((now / old.clamp_min(1e-8)).mean()) for old, now in itertools.pairwise(before)]
    return {"ratios": ratios, "times": list(plan.moments)}
