"""Reward tuning of a student: the gradient of a reward on its own few-step samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method, card
from fewstep.core.student import KINDS
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.origin import plan_of
from fewstep.guidance.reward import reward as named_reward
from fewstep.training.reward import WAYS, reward_samples

METHODS = (
    Method(
        "reward",
        paper="Hyper-SD: Trajectory Segmented Consistency Model for Efficient Image Synthesis (Ren et al., 2024)",
        arxiv="2404.13686",
        claim="a student's own samples of few steps come nearer to what a reward asks for",
        use="Rewarded",
        facts={
            "student": "denoiser",
            "data": False,
            "pairing": False,
            "players": ("student",),
            "steps": "any",
            "tunes": True,  # what a student is already; it does not become one by this
            "small": {"reward": "ink"},
        },
    ),
)


class Rewarded(Distiller):
    """`-E reward(x)` over samples x of the student's own plan (Hyper-SD, section 3.3, with DRaFT's gradient, Clark et
    al., 2309.17400, in place of ReFL's): a stage of a recipe, for a student that draws in few steps already.

    The student keeps its kind, start and times; an adapter that goes through the stages says its kind here. The paper's
    reward models are fewstep's verified rewards, and its segmentation loss has no counterpart.

    Args:
        reward: by name, differentiable, such as "soft-caption"; it takes the label or caption of each sample.
        counts: numbers of steps that are sampled, one drawn an iteration; by default the student's own.
        way, last: how the gradient reaches the weights, and through how many of the last evaluations
            (`training.reward.reward_samples`). kind: of the student, where it does not say it itself.

    Raises:
        ValueError: an unknown reward, way or kind, a reward without a gradient, counts below 1, or above the number of
            times that the student was trained at.
    """

    def __init__(
        self, setting: Setting, reward: str, counts: Sequence[int] | None = None, way: str = "truncated", last: int = 1,
        kind: str | None = None,
    ) -> None:  # fmt: skip
        self.setting, self.score = setting, named_reward(reward)
        if not card(reward, "reward")[0].facts["differentiable"]:
            raise ValueError(f"the reward {reward!r} has no gradient to follow")
        if way not in WAYS:
            raise suggest("way to the gradient", way, WAYS)
        if kind is not None and kind not in KINDS:
            raise suggest("kind of student", kind, KINDS)
        self.reward, self.way, self.last = self.score, way, last
        own = setting.base.student
        self.kind = kind or (own.kind if own is not None else "denoiser")  # type: ignore[misc]
        self.trained_at = None if own is None else own.times
        self.counts = sorted({setting.steps} if counts is None else set(counts))
        if not self.counts or self.counts[0] < 1 or last < 1:
            raise ValueError(f"counts and last must be at least 1, got {list(counts or ())} and {last}")
        if self.trained_at is not None and self.counts != [len(self.trained_at)]:
            raise ValueError(f"this student was trained at {len(self.trained_at)} times alone, got {self.counts} steps")
        self.student = setting.student()
        plans = [plan_of(setting.process, self.kind, count, setting.start, self.trained_at) for count in self.counts]
        self.plans = dict(zip(self.counts, plans, strict=True))
        self.players = {"student": setting.player(self.student, self._loss, average=True)}

    def times(self) -> tuple[float, ...] | None:
        return self.trained_at

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        which = int(torch.randint(len(self.counts), (), generator=generator))
        return {
            "noise": self.setting.noise(batch, generator),
            "condition": self.setting.condition(batch, generator),
            "count": self.counts[which],
            "first": self.setting.step * batch,  # of the numbered samples, from whose streams a plan's steps draw
        }

    def _loss(self, drawn: Batch) -> Tensor:
        setting, noise, condition = self.setting, drawn["noise"], drawn["condition"]
        plan, f = self.plans[drawn["count"]], setting.counted(self.student)
        first = drawn["first"] + setting.share[0] * len(noise)
        last = min(self.last, plan.nfe)
        x = reward_samples(f, noise, plan, self.way, last, seed=setting.seed, first=first, **condition)
        return -self.score(self.student.decode(x, **condition), **condition)
