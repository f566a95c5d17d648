"""Truncated consistency: a second stage that learns the noisy times alone and is held to the first one's answers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.distillation.adapter import apart, own_state
from fewstep.distillation.consistency import inverse_gap
from fewstep.distillation.distances import distance as named_distance
from fewstep.distillation.improved import DEVIATION, MEAN, nearer
from fewstep.distillation.levels import at_ratio, log_normal, ratio_of
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.pairs import Pairs

METHODS = (
    Method(
        "tcm",
        paper="Truncated Consistency Models (Lee et al., 2025)",
        arxiv="2410.14895",
        claim="a student that leaves small noises to its first stage makes better samples in one step",
        use="Truncated",
        facts={"student": "jump", "data": True, "pairing": False, "players": ("student",), "steps": 2},
    ),
)

TAIL = 2.0  # degrees of freedom of the law of levels in stage two


class Truncated(Pairs):
    """TCM: stage one is ECT at all levels; stage two trains from t' to the start alone, held at t' to the student of
    stage one (Lee et al., section 3).

    Stage one's schedule ends with the stage, and stage two keeps its last stretch. A share of stage two's draws lies at
    t' itself, where the goal is the answer of stage one's averaged student; the others are log-Student-t above it, and
    where their second time falls below t', stage one's student answers there as well. The weight of a draw is
    `1 / (sigma_t - sigma_s)`, at the boundary `bound` over the length of the stretch that begins at t'. It
    samples in two steps at most, from the start and from t': below that it is not trained.

    Args:
        stage: share of the iterations in stage one. truncate: t' as noise-to-signal ratio over the data's standard
            deviation (the paper's 1 for 0.5). boundary: share of stage two's draws at t'. bound: their weight.
        q, doublings, distance: of stage one (`ect`).

    Raises:
        ValueError: shares outside 0 to 1, a t' beyond the start, an unknown distance, no data.
    """

    def __init__(
        self, setting: Setting, stage: float = 0.5, truncate: float = 2.0, boundary: float = 0.25, bound: float = 0.1,
        q: float = 2.0, doublings: int = 8, distance: str = "pseudo-huber",
    ) -> None:  # fmt: skip
        if not (0 < stage < 1 and 0 < boundary < 1):
            raise ValueError(f"stage and boundary must be shares between 0 and 1, got {stage} and {boundary}")
        if not q > 1 or doublings < 1 or not bound > 0:
            raise ValueError(f"q must be above 1, doublings at least 1, bound positive, got {q}, {doublings}, {bound}")
        self.level = truncate * setting.data_std
        if not ratio_of(setting.process, setting.process.t_min) < self.level < ratio_of(setting.process, setting.start):
            raise ValueError(f"truncate must lie between the smallest noise and the start, got {truncate}")
        self.truncated = float(at_ratio(setting.process, torch.tensor([self.level]).double(), setting.start))
        self.stage, self.q, self.doublings = stage, q, doublings
        self.boundary, self.bound, self.unit = boundary, bound, 2 * setting.data_std
        self.first: Denoiser | None = None  # stage one's student, from stage two on
        super().__init__(setting, named_distance(distance), training=True)

    def times(self) -> tuple[float, ...]:
        return self.setting.start, self.truncated

    @property
    def turn(self) -> int:
        """Iterations of stage one."""
        return max(1, round(self.stage * self.setting.iterations))

    @property
    def second(self) -> bool:
        """Whether this iteration is one of stage two."""
        return self.setting.step >= self.turn

    def levels(self, batch: int, generator: torch.Generator) -> Batch:
        process, start, every = self.setting.process, self.setting.start, self.turn / self.doublings
        normal = torch.randn(batch, generator=generator, dtype=torch.float64)
        mean = MEAN + math.log(self.unit)
        if not self.second:
            t = log_normal(process, normal, mean, DEVIATION, start)
            return {"t": t, "s": nearer(process, t, start, self.setting.step, every, self.q, self.unit)}
        others = torch.randn(batch, int(TAIL), generator=generator, dtype=torch.float64)
        spread = normal / others.square().mean(1).sqrt()  # Student's t
        beyond = (DEVIATION * spread.abs()).exp() * self.level
        at = self.setting.uniform(batch, generator) < self.boundary
        t = at_ratio(process, torch.where(at, self.level, beyond), start)
        t = torch.where(at, self.truncated, t)
        s = nearer(process, t, start, self.turn, every, self.q, self.unit)
        return {"t": t, "s": s, "at": at}

    def weight(self, drawn: Batch) -> Tensor:
        found = inverse_gap(self.setting, drawn["t"], drawn["s"])
        return torch.where(drawn["at"], self.bound * found, found) if "at" in drawn else found

    @torch.no_grad()
    def kept(self) -> Denoiser:
        """Stage one's student, by its averaged weights."""
        if self.first is None:
            self.first = apart(self.student).requires_grad_(False)
            average = self.players["student"].average
            assert average is not None
            average.copy_to(self.first)
        return self.setting.counted(self.first)

    @torch.no_grad()
    def reached(self, x: Tensor, drawn: Batch) -> Tensor:
        y = super().reached(x, drawn)
        if "at" not in drawn:
            return y
        at = drawn["at"].reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(at, x, y)  # at t' both halves are one state

    @torch.no_grad()
    def target(self, x: Tensor, s: Tensor, drawn: Batch) -> Tensor:
        if "at" not in drawn:
            return super().target(x, s, drawn)
        s = torch.where(drawn["at"], drawn["t"], s)
        below = drawn["at"] | (s < self.truncated)
        kept = self.kept()(x, s, **drawn["condition"]).x0
        own = super().target(x, s, drawn)
        return torch.where(below.reshape(-1, *[1] * (x.ndim - 1)), kept, own)

    def copies(self) -> list[nn.Module]:
        return [*super().copies(), self.student]

    def state(self) -> dict[str, Tensor]:
        first = {} if self.first is None else own_state(self.first, self.student)
        return super().state() | {f"first.{name}": value.clone() for name, value in first.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        super().restore(tensors)
        own = {name[6:]: value for name, value in tensors.items() if name.startswith("first.")}
        self.first = None
        if own:
            self.first = apart(self.student).requires_grad_(False)
            self.first.load_state_dict(own, strict=False)
