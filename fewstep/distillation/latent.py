"""Latent consistency: pairs k steps apart on a table of the teacher's, with guidance inside the teacher's step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.denoisers.boundary import Boundary
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.distances import distance as named_distance
from fewstep.distillation.levels import table
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.pairs import AVERAGE, Pairs
from fewstep.distillation.scales import by_scale, drawn_scales, put_inside, scale_range
from fewstep.distillation.teacher import step
from fewstep.guidance.guided import SCALE

METHODS = (
    Method(
        "lcm",
        paper="Latent Consistency Models: Synthesizing High-Resolution Images with Few-Step Inference"
        " (Luo et al., 2023)",
        arxiv="2310.04378",
        claim="consistency distillation in skips along the teacher's table, its guidance inside",
        use="Latent",
        facts={"student": "jump", "data": False, "pairing": True, "players": ("student",), "steps": "any"},
    ),
)

GRID, STRIDE = 50, 20  # levels where the teacher has no table; k where it has one


def bounded(student: Denoiser) -> Denoiser:
    """The student, within LCM's boundary scalings where it is a network without preconditioning."""
    if isinstance(student, NetworkDenoiser) and student.precondition == "none":
        return Boundary(student)
    return student


class Skips(Pairs):
    """Pairs k steps apart on the teacher's own table, or on a grid of n levels where it has none; the last pairs end at
    the clean end. The start itself is the first time of both.

    Args:
        levels, stride: n and k, by default 50 and 1, on a table 20. substeps: DDIM's steps within k, a power of two.
        guidance: a scale of classifier-free guidance inside the teacher's steps, 1 for none, or two between which it is
            drawn. told: whether the student is told the scale of such a range, as its condition `guidance`.
        extras: further inputs of the student's network.
    """

    def __init__(
        self, setting: Setting, levels: int = GRID, stride: int | None = None, substeps: int = 1,
        average: float = AVERAGE, distance: str = "pseudo-huber", guidance: float | Sequence[float] | None = None,
        states: str | None = None, extras: Mapping[str, int] | None = None, told: bool = False,
    ) -> None:  # fmt: skip
        self.times_of = table(setting.process, levels, setting.start)
        steps = len(self.times_of) - 1
        self.stride = (1 if setting.process.table_steps is None else min(STRIDE, steps)) if stride is None else stride
        if not 1 <= self.stride <= steps:
            raise ValueError(f"stride must be 1 to {steps} steps of the teacher's table, got {stride}")
        self.range, self.told = None if guidance is None else scale_range("guidance", guidance), told
        if told and self.range is None:
            raise ValueError("told=True tells the student its scale of guidance: give a range, guidance=[low, high]")
        student = bounded(setting.student(scales=self.range if told else None, **(extras or {})))
        super().__init__(
            setting, named_distance(distance), student=student, average=average, states=states, substeps=substeps
        )
        if self.range is not None:
            self.teacher = by_scale(self.teacher)
            self.scale_inside = self.range if told else put_inside(self.range)

    def judged(self, teacher: Denoiser) -> Denoiser:
        return teacher if self.range is None else by_scale(teacher, sum(self.range) / 2)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        drawn = super().draw(batch, generator)
        if self.told:
            drawn["condition"] = drawn["condition"] | {SCALE: drawn["scale"]}
        return drawn

    def rows(self, batch: int, generator: torch.Generator) -> Tensor:
        """The rows (batch,) of the table that pairs begin at."""
        return torch.randint(len(self.times_of) - 1, (batch,), generator=generator)

    def levels(self, batch: int, generator: torch.Generator) -> Batch:
        rows = self.rows(batch, generator)
        drawn = self.placed(rows, generator)
        if self.range is not None:
            scale = drawn_scales(self.range, self.setting.uniform(batch, generator))
            drawn["scale"] = scale.float() if self.told else scale
        return drawn

    def placed(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """The pairs that begin at rows of the table."""
        further = (rows + self.stride).clamp(max=len(self.times_of) - 1)
        return {"t": self.times_of[rows], "s": self.times_of[further]}

    @torch.no_grad()
    def reached(self, x: Tensor, drawn: Batch) -> Tensor:
        condition = drawn["condition"] | ({SCALE: drawn["scale"]} if self.range is not None else {})
        return step(self.teacher, x, drawn["t"], drawn["s"], condition, substeps=self.substeps)


class Latent(Skips):
    """LCM: `d(f(x_t, t), f-(DDIM(x_t, t, t - k), t - k))` along the teacher's table (Luo et al., Algorithm 1).

    Networks without EDM's preconditioning get the paper's boundary scalings (`denoisers.boundary`), which the others
    have already. The guidance is that of `fs.guide`, of scale `1 + w` in the paper's w, drawn in a range where one is
    given; the student is told the scale, as in the paper, with `told`. A space of latents is whatever the teacher's
    process runs in.

    Args:
        levels, stride, substeps, guidance, told: as `Skips`. average: decay of the average that the target's side is, 0
            for the student itself. distance: "pseudo-huber", "squared" or "l1".

    Raises:
        ValueError: a stride longer than the table, a scale below 0 or a range that falls, guidance of a teacher without
            a label or caption, or of one that is guided already, a student told a scale that is not in a range.
    """

    def __init__(
        self, setting: Setting, levels: int = GRID, stride: int | None = None, substeps: int = 1,
        average: float = AVERAGE, distance: str = "pseudo-huber", guidance: float | Sequence[float] | None = None,
        told: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(setting, levels, stride, substeps, average, distance, guidance, told=told)
