"""Sub-path linear approximation: the student answers from any point of the line between two states of the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.distillation.latent import GRID, Skips
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.pairs import AVERAGE, kept_masks, noisy

METHODS = (
    Method(
        "splam",
        paper="Accelerating Image Generation with Sub-path Linear Approximation Model (Xu et al., 2024)",
        arxiv="2404.13903",
        claim="long skips along the path cost less: the student learns their whole stretch, not its ends alone",
        use="SubPath",
        facts={"student": "jump", "data": False, "pairing": True, "players": ("student",), "steps": "any"},
    ),
)


class SubPath(Skips):
    """SPLAM: `d(f(x_g, t, g), f-(x_s, s, 1))` at the points `x_g = (1 - g) (alpha_t / alpha_s) x_s + g x_t` of the line
    between x_t and the teacher's state at s = t - k, g uniform (Xu et al., section 3.2).

    g is the further input `share` of the student's network, 1 where it is left out: in the target and in samples. The
    teacher crosses the skip in `substeps` of DDIM's (their multi-step distillation). With g fixed at 1 and no further
    input it is `lcm`.

    Args:
        share: g where it is fixed, and then no input of the network; None draws it. The others as `lcm`.

    Raises:
        ValueError: a share outside 0 to 1, a network that takes no further inputs, and what `lcm` raises.
    """

    def __init__(
        self, setting: Setting, levels: int = GRID, stride: int | None = None, substeps: int = 2,
        average: float = AVERAGE, distance: str = "pseudo-huber", guidance: float | Sequence[float] | None = None,
        share: float | None = None,
    ) -> None:  # fmt: skip
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"share must be 0 to 1, got {share}")
        self.share = share
        extras = {"share": 1} if share is None else None
        super().__init__(setting, levels, stride, substeps, average, distance, guidance, extras=extras)

    def levels(self, batch: int, generator: torch.Generator) -> Batch:
        drawn = super().levels(batch, generator)
        return drawn if self.share is not None else drawn | {"share": self.setting.uniform(batch, generator)}

    def between(self, x: Tensor, y: Tensor, drawn: Batch) -> Tensor:
        """x_g, (B, *shape), between x at t and y at s."""
        process, t = self.setting.process, drawn["t"]
        g = torch.full_like(t, self.share) if self.share is not None else drawn["share"]
        ratio = process.alpha(t) / process.alpha(drawn["s"])
        return expand((1 - g) * ratio, x) * y + expand(g, x) * x

    def pair(self, drawn: Batch) -> tuple[Tensor, Tensor]:
        x = noisy(self.setting, drawn)
        y = self.reached(x, drawn)
        with kept_masks(self.setting.device):
            goal = self.target(y, drawn["s"], drawn)
        told = {"share": drawn["share"]} if "share" in drawn and not self.setting.own else {}
        return self.f(self.between(x, y, drawn), drawn["t"], **drawn["condition"], **told).x0, goal
