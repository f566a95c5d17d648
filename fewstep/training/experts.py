"""A copy of a denoiser for each range of noise levels, trained on that range: to route between them or to merge."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.denoisers.experts import Experts
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.fit import Draw, fit
from fewstep.training.noise_levels import NoiseLevels

METHODS = (
    Method(
        "train-experts",
        kind="trainer",
        paper="PanGu-Draw: Advancing Resource-Efficient Text-to-Image Synthesis (Lu et al., 2023)",
        arxiv="2312.16486",
        claim="a structure expert for high noise and a texture expert for low noise, each with part of the steps",
        use="train_experts",
    ),
)


class RangeLevels(NoiseLevels):
    """Noise levels of another distribution, from the shares `low` to `high` of it, and with probability `outside` from
    all of it.

    Raises ValueError unless 0 <= low < high <= 1 and 0 <= outside <= 1.
    """

    def __init__(self, levels: NoiseLevels, low: float, high: float, outside: float = 0.0) -> None:
        if not 0 <= low < high <= 1 or not 0 <= outside <= 1:
            raise ValueError(f"need 0 <= low < high <= 1 and 0 <= outside <= 1, got {low}, {high} and {outside}")
        super().__init__(levels.process)
        self.levels, self.low, self.high, self.outside = levels, low, high, outside

    def quantile(self, u: Tensor) -> Tensor:
        """Times for uniform numbers u; rising in u, separately below and above the share `outside`."""
        u = u.double()
        # the first share of u is stretched over all levels, the rest over the range: u stays uniform in each
        everywhere = u / self.outside if self.outside > 0 else u
        within = (u - self.outside) / (1 - self.outside) if self.outside < 1 else u
        return self.levels.quantile(
            torch.where(u < self.outside, everywhere, self.low + (self.high - self.low) * within)
        )


def range_cuts(levels: NoiseLevels, shares: Sequence[float]) -> tuple[float, ...]:
    """The times below which these shares of the training's noise levels lie."""
    return tuple(levels.quantile(torch.tensor(shares, dtype=torch.float64)).tolist())


def fit_ranges(
    base: NetworkDenoiser,
    data: Tensor | Draw,
    shares: Sequence[float],
    *,
    steps: int | Sequence[int],
    levels: NoiseLevels | None = None,
    outside: float = 0.0,
    prepare: Callable[[NetworkDenoiser], dict[str, Any]] | None = None,
    finish: Callable[[NetworkDenoiser], NetworkDenoiser] | None = None,
    seed: int = 0,
    **options: Any,
) -> list[NetworkDenoiser]:
    """Trains a copy of `base` for each range of noise levels, by `fit`; base itself stays as it was.

    Args:
        shares: where the ranges meet, as rising shares of the training's noise levels in (0, 1): (0.5,) makes two.
        steps: one number for all ranges, or one per range.
        levels: the training's noise levels, by default uniform in t. outside: probability of a level from all of them.
        prepare: called with each copy before its training; returns further options of `fit`. finish: called after it.
        **options: of `fit`.

    Raises:
        ValueError: shares that do not rise within (0, 1), numbers of steps that do not match.
    """
    edges = (0.0, *shares, 1.0)
    if any(a >= b for a, b in pairwise(edges)):
        raise ValueError(f"shares must rise between 0 and 1, got {tuple(shares)}")
    each = [steps] * (len(edges) - 1) if isinstance(steps, int) else list(steps)
    if len(each) != len(edges) - 1:
        raise ValueError(f"{len(edges) - 1} ranges need as many numbers of steps, got {len(each)}")
    levels = levels or NoiseLevels(base.process)
    made = []
    for number, ((low, high), count) in enumerate(zip(pairwise(edges), each, strict=True)):
        own = copy.deepcopy(base)
        extra = prepare(own) if prepare is not None else {}
        drawn = RangeLevels(levels, low, high, outside)
        trained = fit(own, data, steps=count, levels=drawn, seed=seed + number, **(options | extra))
        made.append(finish(trained) if finish is not None else trained)
    return made


def train_experts(
    base: NetworkDenoiser,
    data: Tensor | Draw,
    shares: Sequence[float] = (0.5,),
    *,
    steps: int | Sequence[int],
    levels: NoiseLevels | None = None,
    outside: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> Experts:
    """Experts by time: `fit_ranges` from `base`, fresh or trained, and a denoiser that routes between the copies.

    The arguments are `fit_ranges`'s. With `shares=(0.5,)` and half of a run's steps each, the two together see as many
    samples as one network would.
    """
    levels = levels or NoiseLevels(base.process)
    made = fit_ranges(base, data, shares, steps=steps, levels=levels, outside=outside, seed=seed, **options)
    return Experts(made, range_cuts(levels, shares)).eval()
