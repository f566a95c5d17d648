"""Multistep consistency: the path in segments, each state held to the start of its own, in ever fewer segments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.distillation.adversary import Adversary, diffused
from fewstep.distillation.latent import GRID, Skips
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.pairs import AVERAGE, kept_masks, noisy
from fewstep.distillation.teacher import jump

METHODS = (
    Method(
        "mlcm",
        paper="MLCM: Multistep Consistency Distillation of Latent Diffusion Model (Xie et al., 2024)",
        arxiv="2406.05768",
        claim="short segments first, then the whole path: one student of 2 to 8 steps, without data",
        use="Multistep",
        facts={"student": "jump", "data": False, "pairing": True, "players": ("student",), "steps": "any"},
    ),
    Method(
        "tscd",
        paper="Hyper-SD: Trajectory Segmented Consistency Model for Efficient Image Synthesis (Ren et al., 2024)",
        arxiv="2404.13686",
        claim="consistency between any times of a segment, and an adversarial loss as segments grow",
        use="Segmented",
        facts={
            "student": "jump",
            "data": False,
            "pairing": True,
            "players": ("student", "discriminator"),
            "steps": "any",
        },
    ),
)

SEGMENTS = (8, 4, 2, 1)


class InSegments(Skips):
    """Pairs within segments of a table: both answers are carried to the segment's clean side e by DDIM's step,
    `d(J(x_t, t, e; f(x_t, t)), J(x_s, s, e; f-(x_s, s)))`.

    The numbers of segments take equal parts of the run, the student of one stage starting the next.
    """

    def __init__(
        self, setting: Setting, segments: Sequence[int], levels: int, stride: int | None, substeps: int,
        average: float, distance: str, states: str | None,
    ) -> None:  # fmt: skip
        super().__init__(setting, levels, stride, substeps, average, distance, None, states)
        steps = len(self.times_of) - 1
        falls = all(a > b for a, b in zip(segments, segments[1:], strict=False))
        if not segments or not falls or min(segments) < 1 or max(segments) > steps:
            raise ValueError(f"segments must fall, from at most {steps} to at least 1, got {list(segments)}")
        self.segments = tuple(segments)
        if self.segments[-1] > 1:
            self.kind = "denoiser"  # type: ignore[misc]  # of as many of DDIM's steps

    def edges(self, count: int) -> Tensor:
        """The rows of the table at which so many segments end, from the noisiest: (count + 1,), the start first."""
        steps = len(self.times_of) - 1
        return (torch.arange(count + 1, dtype=torch.float64) * steps / count).round().long()

    @property
    def count(self) -> int:
        """The number of segments in this iteration."""
        stage = self.setting.step * len(self.segments) // self.setting.iterations
        return self.segments[min(stage, len(self.segments) - 1)]

    def times(self) -> tuple[float, ...] | None:
        if self.segments[-1] == 1:
            return None
        return tuple(self.times_of[self.edges(self.segments[-1])[:-1]].tolist())

    def end_of(self, rows: Tensor) -> Tensor:
        """The rows at which the segments of rows (batch,) end."""
        edges = self.edges(self.count)
        return edges[torch.searchsorted(edges, rows, right=True)]

    def further(self, rows: Tensor, ends: Tensor, generator: torch.Generator) -> Tensor:
        """The rows that the teacher goes to."""
        return torch.minimum(rows + self.stride, ends)

    def placed(self, rows: Tensor, generator: torch.Generator) -> Batch:
        ends = self.end_of(rows)
        further = self.further(rows, ends, generator)
        return {"t": self.times_of[rows], "s": self.times_of[further], "end": self.times_of[ends]}

    def pair(self, drawn: Batch) -> tuple[Tensor, Tensor]:
        """Both halves at the end of their segment."""
        process, t, s, end = self.setting.process, drawn["t"], drawn["s"], drawn["end"]
        x = noisy(self.setting, drawn)
        y = self.reached(x, drawn)
        with kept_masks(self.setting.device):
            goal = jump(process, y, s, end, self.target(y, s, drawn))
        return jump(process, x, t, end, self.f(x, t, **drawn["condition"]).x0), goal


class Multistep(InSegments):
    """MLCM, since called TLCM (Xie et al., section 4): segments 8, 4, 2 and then the whole path, on states that the
    teacher itself passes (`states="teacher"`, no data) or on noised data ("data").

    The paper's student takes up from its teacher's trajectory at the segment's boundary; here a state is walked to from
    pure noise (`pairs.noisy`). Its reward, matching and adversarial losses are methods of their own. With one segment
    and noised data it is `lcm`. A list that ends above 1 makes a student of that many of DDIM's steps.

    Args:
        segments: the numbers of segments, falling. states: "teacher" or "data".
        levels, stride, substeps, average, distance: as `lcm`.

    Raises:
        ValueError: numbers that do not fall or exceed the table, unknown names, "data" that are not known.
    """

    def __init__(
        self, setting: Setting, segments: Sequence[int] = SEGMENTS, states: str = "teacher", levels: int = GRID,
        stride: int | None = None, substeps: int = 1, average: float = AVERAGE, distance: str = "pseudo-huber",
    ) -> None:  # fmt: skip
        super().__init__(setting, segments, levels, stride, substeps, average, distance, states)


class Segmented(InSegments):
    """TSCD (Ren et al., section 3.2): the teacher goes from a time of a segment to any later one of it, and the more of
    the path a segment covers, the more an adversarial loss counts beside the distance.

    The discriminator tells the student's states at the end of the segment from those of the target's side, both
    diffused to a time between that end and the start; its weight is `gan` over the number of segments, and that of the
    distance one. The teacher's way is `substeps` of DDIM's.

    Args:
        segments, states, levels, substeps, average, distance: as `mlcm`; states by default the data where they are
            given.
        gan: weight of the adversarial loss at one segment; 0 for none. features: names of the blocks that the heads
            read. adversarial: "non-saturating" or "hinge".

    Raises:
        ValueError: as `mlcm`; a weight below 0, an unknown block, a network that names none.
    """

    def __init__(
        self, setting: Setting, segments: Sequence[int] = SEGMENTS, states: str | None = None, levels: int = GRID,
        substeps: int = 4, average: float = AVERAGE, distance: str = "squared", gan: float = 0.1,
        features: Sequence[str] | None = None, adversarial: str = "non-saturating",
    ) -> None:  # fmt: skip
        if gan < 0:
            raise ValueError(f"gan must be at least 0, got {gan}")
        super().__init__(setting, segments, levels, 1, substeps, average, distance, states)
        self.gan = gan
        if gan:
            self.adversary = Adversary(setting, features, adversarial)
            self.players["discriminator"] = self.adversary.player(self.critic_loss)

    def further(self, rows: Tensor, ends: Tensor, generator: torch.Generator) -> Tensor:
        share = torch.rand(len(rows), generator=generator, dtype=torch.float64)
        return rows + 1 + (share * (ends - rows)).long()

    def levels(self, batch: int, generator: torch.Generator) -> Batch:
        drawn = super().levels(batch, generator)
        if not self.gan:
            return drawn
        rows = torch.searchsorted(-self.times_of, -drawn["end"])
        share = torch.rand(batch, generator=generator, dtype=torch.float64)
        level = self.times_of[(share * rows).long()]
        return drawn | {"level": level, "noise": self.setting.noise(batch, generator)}

    def seen(self, x: Tensor, drawn: Batch) -> Tensor:
        """States at the end of their segment, as the discriminator has them."""
        return diffused(self.setting, x, drawn["end"], drawn["level"], drawn["noise"])

    def loss(self, drawn: Batch) -> Tensor:
        made, goal = self.pair(drawn)
        loss = self.compared(made, goal, drawn)
        if not self.gan:
            return loss
        fooled = self.adversary.fooled(self.seen(made, drawn), drawn["level"], drawn)
        return loss + self.gan / self.count * fooled

    def critic_loss(self, drawn: Batch) -> Tensor:
        """The discriminator's loss (B,): the target's side against the student's, at the end of their segment."""
        with torch.no_grad():
            made, goal = self.pair(drawn)
        return self.adversary.told(self.seen(goal, drawn), self.seen(made, drawn), drawn["level"], drawn)
