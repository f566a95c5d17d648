"""Consistency distillation and training: one answer for two neighbouring states of a path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.distillation.distances import Distance
from fewstep.distillation.distances import distance as named_distance
from fewstep.distillation.levels import grid, ratio
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.pairs import AVERAGE, Pairs

METHODS = (
    Method(
        "consistency",
        paper="Consistency Models (Song et al., 2023)",
        arxiv="2303.01469",
        claim="one answer along each path of the teacher's: a sample from any of its states in one evaluation",
        use="Consistency",
        facts={"student": "jump", "data": False, "pairing": True, "players": ("student",), "steps": "any"},
    ),
)

WEIGHTS = ("one", "inverse")


def inverse_gap(setting: Setting, t: Tensor, s: Tensor) -> Tensor:
    """`1 / (sigma_t - sigma_s)` (B,) in noise-to-signal ratios, for data of standard deviation 0.5 as in the papers."""
    unit = 2 * setting.data_std
    return unit / (ratio(setting.process, t) - ratio(setting.process, s))


class Neighbours:
    """Pairs of neighbouring times of a grid, all equally often."""

    def __init__(self, times: Tensor) -> None:
        self.times = times

    def __call__(self, batch: int, generator: torch.Generator, weights: Tensor | None = None) -> Batch:
        """Times "t" and "s", (batch,); weights: of the pairs, from the noisiest on."""
        if weights is None:
            rows = torch.randint(len(self.times) - 1, (batch,), generator=generator)
        else:
            rows = torch.multinomial(weights, batch, replacement=True, generator=generator)
        return {"t": self.times[rows], "s": self.times[rows + 1]}


def check_weight(weight: str) -> str:
    """The name of a weight; `ValueError` for an unknown one."""
    if weight not in WEIGHTS:
        raise suggest("weight", weight, WEIGHTS)
    return weight


class OnGrid(Pairs):
    """Pairs of neighbours on a grid of N levels and the clean end, an averaged target, and a weight by name.

    Raises:
        ValueError: fewer than 1 level, a decay outside [0, 1), an unknown name.
    """

    def __init__(
        self, setting: Setting, levels: int, average: float, distance: Distance, weight: str, **more: Any,
    ) -> None:  # fmt: skip
        self.neighbours = Neighbours(grid(setting.process, levels, setting.start))
        self.weighted = check_weight(weight) == "inverse"
        super().__init__(setting, distance, average=average, **more)

    def levels(self, batch: int, generator: torch.Generator) -> Batch:
        return self.neighbours(batch, generator)

    def weight(self, drawn: Batch) -> Tensor | None:
        return inverse_gap(self.setting, drawn["t"], drawn["s"]) if self.weighted else None


class Consistency(OnGrid):
    """`w d(f(x_t, t), f-(step(x_t, t, s), s))` on a grid of N levels and the clean end (Song et al., Algorithm 2), and
    without a teacher the same data with the same noise in both halves (Algorithm 3 at a fixed N).

    The grid's last stretch, from the smallest noise to the clean end, is a pair as the others, so that the boundary
    `f(x, 0) = x` needs no scalings of the student's; the paper parametrises it at the smallest noise. The paper's
    distance is LPIPS, which needs a network of its own; its teacher's steps are Heun's, here the midpoint rule in
    log-SNR, of the same order and cost; and its weight is one, where by default the inverse gap brings small students
    nearer to the path's end (in two dimensions the error at the end is a quarter less).

    Args:
        levels: N. order: of the teacher's step, 1 or 2. training: no teacher, real data. average: decay of the average
            that the target's side is, 0 for the student itself. distance: "squared", "pseudo-huber" or "l1". c: of
            "pseudo-huber". weight: "inverse", `1 / (sigma_t - sigma_s)`, or "one".

    Raises:
        ValueError: fewer than 1 level, a decay outside [0, 1), an unknown name, training without data.
    """

    def __init__(
        self, setting: Setting, levels: int = 18, order: int = 2, training: bool = False,
        average: float = AVERAGE, distance: str = "pseudo-huber", c: float | None = None, weight: str = "inverse",
    ) -> None:  # fmt: skip
        found = named_distance(distance, c)
        super().__init__(setting, levels, average, found, weight, training=training, order=order)
