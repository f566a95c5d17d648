"""AnimateLCM's control: an adapter for the first frame or the layout, trained beside a student without any teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.denoisers.controlled import LAYOUT, PICTURE, Controlled, layout_of
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
        claim="a few-step student of clips keeps to a given frame or layout, by an adapter that no teacher taught",
        use="ClipControl",
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


class ClipControl(OnGrid):
    """Consistency training of an adapter that reads the first frame, or the layout of all frames (Wang et al., section
    4.3): `d(f(x_t, t, c), f-(x_s, s, c))`, x_t and x_s one clip with one noise and c what is read of it.

    The two states lie on one ray, so the clip itself stands where a teacher's step would, and nothing is needed but
    clips. The network beside the adapter is a student that jumps already; its weights, its start and the times it was
    trained at stay.

    Args:
        control: "first-frame" (the condition `picture`) or "layout" (`fewstep.denoisers.controlled.layout_of`).
        levels: of the grid whose neighbours are paired, as `consistency`; None pairs the times at which the student is
            sampled in its steps, and the clean end. average, distance, weight: as `consistency`.

    Raises:
        ValueError: a base that makes no clips, a student that is no jump or was trained at another number of times,
            `lora`, no data, and what `consistency` raises.
    """

    def __init__(
        self, setting: Setting, control: str = "first-frame", levels: int | None = None, average: float = AVERAGE,
        distance: str = "pseudo-huber", weight: str = "inverse",
    ) -> None:  # fmt: skip
        if control not in CONTROLS:
            raise suggest("control", control, CONTROLS)
        if setting.lora is not None:
            raise ValueError("'animate-control' trains an adapter of its own: leave lora out")
        own = setting.base.student
        if own is not None and own.kind != self.kind:
            raise ValueError(f"control is for students whose answers are samples (jump), and this is a {own.kind!r}")
        self.trained_at = None if own is None else own.times
        if self.trained_at is not None and len(self.trained_at) != setting.steps:
            raise ValueError(f"this student was trained at {len(self.trained_at)} times, got {setting.steps} steps")
        if len(setting.shape) != 4:
            raise ValueError(
                f"a {control.replace('-', ' ')} is one of clips (T, C, H, W): this model's samples are {setting.shape}"
            )
        self.condition, self.read, self.reward = CONTROLS[control]
        student = Controlled(setting.base.requires_grad_(False), control=self.condition)
        setting.claim(student, average=True, shared=True)
        super().__init__(
            setting, levels or 1, average, named_distance(distance), weight, student=student, training=True
        )
        if levels is None:
            times = plan_of(setting.process, self.kind, setting.steps, setting.start, self.trained_at).times
            self.neighbours = Neighbours(torch.tensor(times, dtype=torch.float64))
        self.scale_inside = None if own is None else own.guidance  # type: ignore[assignment]

    def times(self) -> tuple[float, ...] | None:
        return self.trained_at

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        drawn = super().draw(batch, generator)
        return drawn | {"condition": drawn["condition"] | {self.condition: self.read(drawn["x0"])}}

    def problem(self, first: int, n: int) -> Problem:
        """Clips of the data with their conditions and what is read of them: no teacher's samples keep to that."""
        setting = self.setting
        x0, condition = setting.real(n, torch.Generator().manual_seed(first))
        told = {name: value.to(setting.device) for name, value in (condition | {self.condition: self.read(x0)}).items()}
        return Problem(noises(setting.seed, first, n, setting.base), x0.to(setting.device), told, setting.seed, first)


def begins(clips: Tensor, picture: Tensor, **_: Tensor) -> Tensor:
    """Minus the mean squared error (B,) of the first frames of clips (B, T, C, H, W) from pictures (B, C, H, W)."""
    return -(clips[:, 0] - picture).square().flatten(1).mean(1)


def follows(clips: Tensor, layout: Tensor, **_: Tensor) -> Tensor:
    """Minus the mean squared error (B,) of the layouts of clips (B, T, C, H, W) from those asked for."""
    return -(layout_of(clips) - layout).square().flatten(1).mean(1)


def first_frame(clips: Tensor) -> Tensor:
    """(B, C, H, W) of clips (B, T, C, H, W)."""
    return clips[:, 0]


# The condition, what is read of a clip, and how well clips keep to it.
CONTROLS: dict[str, tuple[str, Callable[[Tensor], Tensor], Callable[..., Tensor]]] = {
    "first-frame": (PICTURE, first_frame, begins),
    "layout": (LAYOUT, layout_of, follows),
}
