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
from fewstep.training.players import cosine

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

TAIL, SCALE = 0.01, 0.2  # degrees of freedom and scale of the law of log levels in stage two (Lee et al., section 4)
SLOWER = 0.05  # stage two's highest rate over stage one's, as in the paper's runs on ImageNet (1/2 on CIFAR-10)


def student_t(shares: Tensor, top: float) -> Tensor:
    """Levels in [1, top) whose logarithm is Student-t about 0, cut to these ends: the law's quantiles at shares in
    [0, 1), float64. The tail is so heavy that beyond the first hundredth of it log levels are nearly log-uniform."""
    from scipy.special import stdtr, stdtrit

    most = stdtr(TAIL, math.log(top) / SCALE) - 0.5
    return (SCALE * torch.from_numpy(stdtrit(TAIL, 0.5 + most * shares.double().numpy()))).exp()


class Truncated(Pairs):
    """TCM: stage one is ECT at all levels; stage two trains from t' to the start alone, held at t' to the student of
    stage one (Lee et al., section 3).

    Stage one's schedule ends with the stage, and stage two keeps its last stretch. A share of stage two's draws lies at
    t' itself; the others are log-Student-t above it, cut to the start by drawing from the law between the two. Wherever
    the second time falls below t', as it does for all draws at t', stage one's averaged student gives the goal. Stage
    two's loss is the mean above t' plus `bound` times the mean at t', each pair weighted by `1 / (sigma_t - sigma_s)`.
    It samples in two steps at most, from the start and from t': below that it is not trained.

    The rate rises and falls in each stage by itself, and stage two has a twentieth of it. A step of the optimiser that
    moves the answers further than neighbours of a pair differ, drives the target away as fast as it is followed; so the
    rate has to be small by the time that stretches are short, as it is at the end of `ect`.

    Args:
        stage: share of the iterations in stage one. truncate: t' as noise-to-signal ratio over the data's standard
            deviation (the paper's 1 for 0.5). boundary: share of stage two's draws at t'. bound: weight of
            their mean; the paper's 0.1 is for runs a thousand times as long, and in short ones lets go of the boundary:
            the answers above it then drift (in two dimensions to several times stage one's distance).
        q, doublings, distance: of stage one (`ect`).

    Raises:
        ValueError: shares outside 0 to 1, a t' beyond the start, an unknown distance, no data.
    """

    def __init__(
        self, setting: Setting, stage: float = 0.5, truncate: float = 2.0, boundary: float = 0.25, bound: float = 1.0,
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
        self.players["student"].lr = self.rate

    def rate(self, step: int) -> float:
        """The student's rate in an iteration."""
        if step < self.turn:
            return cosine(self.setting.lr, self.turn, warmup=max(1, self.turn // 20))(step)
        rest = self.setting.iterations - self.turn
        return cosine(SLOWER * self.setting.lr, rest, warmup=max(1, rest // 20))(step - self.turn)

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
        at = self.setting.uniform(batch, generator) < self.boundary
        above = student_t(self.setting.uniform(batch, generator), ratio_of(process, start) / self.level)
        t = torch.where(at, self.truncated, at_ratio(process, above * self.level, start))
        return {"t": t, "s": nearer(process, t, start, self.turn, every, self.q, self.unit), "at": at}

    def weight(self, drawn: Batch) -> Tensor:
        found = inverse_gap(self.setting, drawn["t"], drawn["s"])
        if "at" not in drawn:
            return found
        share = torch.where(drawn["at"], self.bound / self.boundary, 1 / (1 - self.boundary))
        return share * found  # in the mean over the batch, a mean of each kind of draw

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
    def target(self, x: Tensor, s: Tensor, drawn: Batch) -> Tensor:
        own = super().target(x, s, drawn)
        if "at" not in drawn:
            return own
        below = (s < self.truncated).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(below, self.kept()(x, s, **drawn["condition"]).x0, own)

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
