"""PG-SB: variational score distillation under guidance whose scale is drawn anew for every iteration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.arguments import shown
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.distillation.distribution_matching import DiffInstruct
from fewstep.distillation.fake import denoising
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.scales import by_scale
from fewstep.distillation.teacher import BACKWARD
from fewstep.guidance.guide import guide
from fewstep.guidance.guided import SCALE

METHODS = (
    Method(
        "pg-sb",
        paper="SNOOPI: Supercharged One-step Diffusion Distillation with Proper Guidance (Nguyen et al., 2024)",
        arxiv="2412.02687",
        claim="one step by two scores, both guided by one scale that is drawn for each iteration",
        use="GuidedMatching",
        facts={"student": "jump", "data": False, "pairing": False, "players": ("fake", "student"), "steps": "any"},
    ),
)

EMPTY = 0.1  # share of the fake's samples whose condition is hidden, as in a teacher's own training


class GuidedMatching(DiffInstruct):
    """`w(t) (s_fake - s_teacher)(x_t) dx_t / dtheta` with both scores `empty + scale (conditional - empty)`.

    The two have the same scale, drawn evenly between two ends once an iteration, and each its own empty condition
    (Nguyen et al., section 4.1). A student at one scale depends on which it is; over many it sees them all. The weight
    is that of `diff-instruct`, which this is at scale 1.

    Args:
        scales: the ends; `(s, s)` is the fixed scale of SwiftBrush (Nguyen and Tran, 2312.05239). ratio: turns of the
            fake score for one of the student. fake: "lora" (the paper's) or "copy" (`fake_of`).

    Raises:
        ValueError: scales that are not two numbers, rising from 0 or more; a teacher without a label or caption, or
            one that is guided already; a ratio below 1, another word for the fake score.
    """

    def __init__(
        self, setting: Setting, scales: Sequence[float] = (1.0, 4.0), ratio: int = 1, fake: str = "lora"
    ) -> None:
        if len(scales) != 2 or not 0 <= scales[0] <= scales[1] < float("inf"):
            raise ValueError(f"scales must be two that rise from 0 or more, such as [1, 4], got {shown(scales)}")
        if SCALE in setting.teacher.conditions:
            raise ValueError("the teacher has guidance already: distil what is inside, by scales of its own")
        super().__init__(setting, ratio, fake)
        self.scales = float(scales[0]), float(scales[1])
        self.scale_inside = sum(self.scales) / 2
        self.led = self._led(setting.counted(self.fake)), self._led(self.teacher)

    @staticmethod
    def _led(model: Denoiser) -> Denoiser:
        return guide(model, "cfg", scale=2.0)  # the scale comes with each call

    def judged(self, teacher: Denoiser) -> Denoiser:
        return by_scale(teacher, sum(self.scales) / 2)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        low, high = self.scales
        drawn = super().draw(batch, generator)
        drawn["scale"] = low + (high - low) * float(self.setting.uniform(1, generator))
        return drawn | {"hidden": self.setting.uniform(batch, generator) < EMPTY}

    def answers(self, x: Tensor, drawn: Batch) -> tuple[Tensor, Tensor]:
        """Guided x0 of the fake network and of the teacher at samples (B, *shape), diffused as drawn."""
        if drawn["scale"] == 1:
            return super().answers(x, drawn)
        t, scale = drawn["t"], torch.full((len(x),), drawn["scale"], dtype=x.dtype, device=x.device)
        x_t, condition = self.setting.noised(x, drawn["eps"], t), drawn["condition"] | {SCALE: scale}
        fake, real = (model(x_t, t, **condition).x0 for model in self.led)
        return fake, real

    def fake_loss(self, x: Tensor, drawn: Batch) -> Tensor:
        self.setting.count.evaluations += BACKWARD * len(x)
        condition = dict(drawn["condition"])
        for name, kind in self.fake.conditions.items():
            if kind.guides and name in condition:
                empty = kind.check(name, None, 1, x.device)
                hidden = drawn["hidden"].view(-1, *[1] * (condition[name].ndim - 1))
                condition[name] = torch.where(hidden, empty, condition[name])
        return denoising(self.fake, x, drawn["eps"], drawn["t"], condition)
