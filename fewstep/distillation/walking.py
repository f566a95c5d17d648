"""Regression along a trajectory: the student walks its own few steps, each held to the teacher's state at that time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions.number import Number
from fewstep.core.methods import Method
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.distances import Features
from fewstep.distillation.distances import distance as named_distance
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.regression import stretches, walked
from fewstep.distillation.teacher import BACKWARD, FORWARD, jump

METHODS = (
    Method(
        "sfd",
        paper="Simple and Fast Distillation of Diffusion Models (Zhou et al., 2024)",
        arxiv="2409.19681",
        claim="at times of its own, few DDIM steps follow the teacher's path, learnt on the student's own states",
        use="Walk",
        facts={
            "student": "denoiser",
            "data": False,
            "pairing": True,
            "players": ("student",),
            "steps": "any",
            "small": {"pairs": 32, "evaluations": 2},
        },
    ),
)


class Walk(Distiller):
    """`sum_k d(x_{k+1}, y_{k+1})` over the steps `x_{k+1} = J(x_k, t_k, t_{k+1}; f(x_k, t_k))` of the student's walk,
    with y the teacher's states at these times (Zhou et al., Algorithm 2).

    A step begins at the student's own state, of which no gradient is taken, so it learns to mend what the steps before
    it missed. DDIM's plan over `times()` and the clean end is this walk.

    Leaving the paper: trajectories are stored and drawn from, where the paper makes one an iteration; the gradients of
    all steps are added up before the weights move, where it moves them after each; its feature distance is LPIPS, here
    that of the teacher's own network (`distances.Features`). No first step is taken from a formula (its AFS).

    Args:
        pairs: trajectories that are stored. evaluations: of the teacher, for one of the student's steps.
        distance: "l1" (the paper's), "squared" or "pseudo-huber".
        last: what compares ends: one of these, or "features"; None is the features of pictures where the network names
            blocks, and otherwise the distance of all steps.
        counts: other numbers of steps that it is to walk as well (SFD-v, section 3.4): an iteration draws one, and the
            network is told its share of `steps` as the further input `share`. Their times are those of the teacher's
            that are nearest to `stretches(count)` from above (`walk`).

    Raises:
        ValueError: counts outside 1 to `steps`, networks that take no further input, an unknown distance, features of a
            network that names no blocks, no pairs, evaluations below 1.
    """

    kind = "denoiser"

    def __init__(
        self, setting: Setting, pairs: int = 8192, evaluations: int = 8, distance: str = "l1", last: str | None = None,
        counts: Sequence[int] = (),
    ) -> None:  # fmt: skip
        if any(not 1 <= count <= setting.steps for count in counts):
            raise ValueError(f"counts must be 1 to {setting.steps}, the student's steps, got {list(counts)}")
        self.setting, self.distance = setting, named_distance(distance)
        by_features = last == "features" or (last is None and len(setting.shape) > 1)
        self.last = self.distance if last in (None, "features") else named_distance(str(last))
        self.features = _features(setting, needed=last == "features") if by_features else None
        self.counts, self.varies = sorted({setting.steps, *counts}), bool(counts)
        self.student = setting.student(share=1) if self.varies else setting.student()
        if self.varies and isinstance(self.student, NetworkDenoiser):
            self.student.conditions = {**self.student.conditions, "share": Number(0.0, 1.0, 1.0)}
        self.fine = stretches(setting, evaluations * setting.steps).tolist()
        self.pairing = walked(setting, pairs, setting.steps, evaluations, 1 if self.varies else None)
        self.players = {"student": setting.player(self.student, self._loss, average=True)}

    def places(self, count: int) -> list[int]:
        """Which of the teacher's times a walk of so many steps stops at, the clean end among them."""
        return [k * (len(self.fine) - 1) // count for k in range(count + 1)]

    def walk(self, count: int) -> list[float]:
        """The times of a walk of so many steps, the clean end among them."""
        return [self.fine[place] for place in self.places(count)]

    def times(self) -> tuple[float, ...]:
        return tuple(self.walk(self.setting.steps)[:-1])

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        which = int(torch.randint(len(self.counts), (), generator=generator))
        return {"rows": self.pairing.rows(batch, generator), "count": self.counts[which]}

    def _loss(self, drawn: Batch) -> Tensor:
        rows, count = drawn["rows"], drawn["count"]
        condition: dict[str, Tensor] = self.pairing.named(rows)
        kept = self.pairing.states[rows]
        if not self.varies:
            return self.loss(self.pairing.z[rows], list(kept.unbind(1)), self.walk(count), condition)
        condition["share"] = torch.full((len(rows),), count / self.setting.steps, device=kept.device)
        goals = [kept[:, place - 1] for place in self.places(count)[1:]]
        return self.loss(self.pairing.z[rows], goals, self.walk(count), condition)

    def loss(self, z: Tensor, goals: Sequence[Tensor], times: Sequence[float], condition: Mapping[str, Any]) -> Tensor:
        """The mean distance (B,) of the states on a walk from noises z from the teacher's.

        Args:
            goals: the teacher's states, (B, *shape), at times[1:].
        """
        setting, total = self.setting, z.new_zeros(len(z))
        f, x = setting.counted(self.student), setting.begin(z)
        for number, ((a, b), goal) in enumerate(zip(pairwise(times), goals, strict=True), 1):
            t, s = setting.times(a, len(z)), setting.times(b, len(z))
            made = jump(setting.process, x, t, s, f(x, t, **condition).x0)
            total = total + (self._end(made, goal, condition) if number == len(goals) else self.distance(made, goal))
            x = made.detach()
        return total / len(goals)

    def _end(self, made: Tensor, goal: Tensor, condition: Mapping[str, Any]) -> Tensor:
        if self.features is None:
            return self.last(made, goal)
        self.setting.count.evaluations += (BACKWARD + FORWARD) * len(made)
        return self.features(made, goal, {name: value for name, value in condition.items() if name != "share"})


def _features(setting: Setting, needed: bool) -> Features | None:
    """The features of the teacher's network, or None where it has none; `ValueError` if they are needed then."""
    model = setting.fake if setting.own else setting.base
    try:
        if model is None:
            raise ValueError("the features of the last step need a teacher with a network that names blocks")
        return Features(model)
    except ValueError:
        if needed:
            raise
        return None
