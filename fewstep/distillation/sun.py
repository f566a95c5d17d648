"""SpeedUpNet: guidance in one pass by an adapter that reads the negative caption, and plugs into other weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.conditions.negative import Negative
from fewstep.core.methods import Method
from fewstep.denoisers.sun import Sun
from fewstep.distillation.guided import OnePass
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.pairs import drawn_from, noisy
from fewstep.distillation.regression import stretches
from fewstep.distillation.scales import by_scale, scale_range, told_scale
from fewstep.distillation.teacher import landing, step
from fewstep.guidance.cfg import AWAY
from fewstep.guidance.guided import SCALE

METHODS = (
    Method(
        "sun",
        paper="SpeedUpNet: A Plug-and-Play Adapter Network for Accelerating Text-to-Image Diffusion Models"
        " (Chai et al., 2023)",
        arxiv="2312.08887",
        claim="one pass answers guidance away from any negative caption; the adapter fits other weights",
        use="SpeedUp",
        facts={
            "student": "denoiser",
            "data": True,
            "pairing": True,
            "players": ("student",),
            "steps": "any",
            "usual_steps": 8,
            "start": 1000.0,
            "lora": False,  # it is an adapter itself
        },
    ),
)


class SpeedUp(OnePass):
    """`guided` for an adapter (`denoisers.sun`) that is told scale and negative, beside the network itself.

    The error of one pass from guidance with random pairs of a caption and a negative at random scales, and `msc` times
    the error of the x0 whose jump `J(x_t, t, s; x0)` lands where several guided steps of the teacher go from t to s
    (the multi-step consistency of Chai et al.), t and s neighbours among the student's own times.

    The two losses differ by what a DDIM step of that length errs, so the second makes the student good at its own
    number of steps at the cost of being the guided mean. Negatives are captions (or labels) of other samples.

    Args:
        scales, states: as `guided`. msc: weight of the second loss, 0 to leave it out. substeps: the teacher's within a
            step, a power of two. empty: share of the negatives that are empty.

    Raises:
        ValueError: as `guided`; one scale alone, a weight below 0, a share outside 0 to 1, what `Sun` refuses, `lora`.
    """

    def __init__(
        self, setting: Setting, scales: Sequence[float] = (1.0, 4.0), msc: float = 0.1, substeps: int = 4,
        empty: float = 0.5, states: str = "data",
    ) -> None:  # fmt: skip
        self.states = drawn_from(setting, states)
        self.scales = self.scale_inside = scale_range("scales", scales)
        told_scale(self.scales)
        if not (msc >= 0 and 0 <= empty <= 1):
            raise ValueError(f"msc must be at least 0 and empty a share in 0 to 1, got {msc} and {empty}")
        if setting.lora is not None:
            raise ValueError("'sun' trains an adapter of its own: leave lora out")
        self.goal = by_scale(setting.teacher, sum(self.scales) / 2)
        self.setting, self.msc, self.substeps, self.empty = setting, msc, substeps, empty
        base = setting.base.requires_grad_(False)
        self.student = student = Sun(base, *self.scales)
        self.of = student.of
        setting.claim(student, average=True, shared=True)
        self.grid = stretches(setting, setting.steps)
        self.players = {"student": setting.player(student, self._loss, average=True)}

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        drawn = super().draw(batch, generator)
        given = drawn["condition"][self.of]
        none = self._empty(batch).cpu()
        hidden = self.setting.uniform(batch, generator) < self.empty
        others = given[torch.randperm(batch, generator=generator)]
        drawn["negative"] = torch.where(hidden.reshape(-1, *[1] * (given.ndim - 1)), none, others)
        if self.msc:
            rows = torch.randint(len(self.grid) - 1, (batch,), generator=generator)
            drawn |= {"from": self.grid[rows], "to": self.grid[rows + 1]}
        return drawn

    def _empty(self, batch: int) -> Tensor:
        kind = self.student.conditions[AWAY]
        assert isinstance(kind, Negative)
        return kind.check(AWAY, None, batch, self.setting.device)

    def asked(self, drawn: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the guided teacher is told, and the student."""
        own, scale, away = drawn["condition"], drawn["scale"], drawn["negative"]
        return own | {SCALE: scale, f"{AWAY}_{self.of}": away}, own | {SCALE: scale, AWAY: away}

    def _loss(self, drawn: Batch) -> Tensor:
        theirs, ours = self.asked(drawn)
        t = drawn["t"]
        x = noisy(self.setting, drawn)
        with torch.no_grad():
            goal = self.goal(x, t, **theirs).x0
        losses = self.error(x, t, ours, goal)
        if not self.msc:
            return losses
        t, s = drawn["from"], drawn["to"]
        x = noisy(self.setting, drawn | {"t": t})
        with torch.no_grad():
            goal = landing(self.setting.process, x, t, s, step(self.goal, x, t, s, theirs, substeps=self.substeps))
        return losses + self.msc * self.error(x, t, ours, goal)
