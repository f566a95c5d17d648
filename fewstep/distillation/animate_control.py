"""AnimateLCM's control: an adapter for the first frame, trained beside a student of few steps without any teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.denoisers.controlled import PICTURE, Controlled
from fewstep.distillation.consistency import Neighbours, OnGrid
from fewstep.distillation.distances import distance as named_distance
from fewstep.distillation.method import Batch, Setting, noises
from fewstep.distillation.origin import plan_of
from fewstep.distillation.pairs import AVERAGE
from fewstep.searching.problem import Problem

METHODS = (
    Method(
        "animate-control",
        paper="AnimateLCM: Computation-Efficient Personalized Style Video Generation without Personalized Video Data"
        " (Wang et al., 2024)",
        arxiv="2402.00769",
        claim="a few-step student of clips begins with a given frame, by an adapter that no teacher taught",
        use="FirstFrame",
        facts={
            "student": "jump",
            "data": True,
            "pairing": False,
            "players": ("student",),
            "steps": "any",
            "usual_steps": 4,
            "clips": True,
            "lora": False,  # it is an adapter itself
            "beside": True,  # a student of few steps, which may itself be what is given as the teacher
        },
    ),
)


class FirstFrame(OnGrid):
    """Consistency training of an adapter that reads the first frame (Wang et al., section 4.3): `d(f(x_t, t, c),
    f-(x_s, s, c))`, x_t and x_s one clip with one noise and c its first frame.

    The two states lie on one ray, so the clip itself stands where a teacher's step would, and nothing is needed but
    clips. The network beside the adapter is a student that jumps already; its weights, its start and the times it was
    trained at stay.

    Args:
        levels: of the grid whose neighbours are paired, as `consistency`; None pairs the times at which the student is
            sampled in its steps, and the clean end. average, distance, weight: as `consistency`.

    Raises:
        ValueError: a base that makes no clips, a student that is no jump or was trained at another number of times,
            `lora`, no data, and what `consistency` raises.
    """

    def __init__(
        self, setting: Setting, levels: int | None = None, average: float = AVERAGE, distance: str = "pseudo-huber",
        weight: str = "inverse",
    ) -> None:  # fmt: skip
        if setting.lora is not None:
            raise ValueError("'animate-control' trains an adapter of its own: leave lora out")
        own = setting.base.student
        if own is not None and own.kind != self.kind:
            raise ValueError(f"control is for students whose answers are samples (jump), and this is a {own.kind!r}")
        self.trained_at = None if own is None else own.times
        if self.trained_at is not None and len(self.trained_at) != setting.steps:
            raise ValueError(f"this student was trained at {len(self.trained_at)} times, got {setting.steps} steps")
        student = Controlled(setting.base.requires_grad_(False))
        if len(setting.shape) != 4:
            raise ValueError(f"a first frame is one of clips (T, C, H, W): this model's samples are {setting.shape}")
        setting.claim(student, average=True, shared=True)
        super().__init__(
            setting, levels or 1, average, named_distance(distance), weight, student=student, training=True
        )
        if levels is None:
            times = plan_of(setting.process, self.kind, setting.steps, setting.start, self.trained_at).times
            self.neighbours = Neighbours(torch.tensor(times, dtype=torch.float64))
        self.scale_inside = None if own is None else own.guidance  # type: ignore[assignment]
        self.reward = begins

    def times(self) -> tuple[float, ...] | None:
        return self.trained_at

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        drawn = super().draw(batch, generator)
        return drawn | {"condition": drawn["condition"] | {PICTURE: drawn["x0"][:, 0]}}

    def problem(self, first: int, n: int) -> Problem:
        """Clips of the data with their conditions and first frames: no teacher's samples begin with those."""
        setting = self.setting
        x0, condition = setting.real(n, torch.Generator().manual_seed(first))
        told = {name: value.to(setting.device) for name, value in (condition | {PICTURE: x0[:, 0]}).items()}
        return Problem(noises(setting.seed, first, n, setting.base), x0.to(setting.device), told, setting.seed, first)


def begins(clips: Tensor, picture: Tensor, **_: Tensor) -> Tensor:
    """Minus the mean squared error (B,) of the first frames of clips (B, T, C, H, W) from pictures (B, C, H, W)."""
    return -(clips[:, 0] - picture).square().flatten(1).mean(1)
