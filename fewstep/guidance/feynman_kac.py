"""Feynman-Kac steering: any reward, also one without a gradient, weighs the particles while the samples form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.guidance.reward import Goal, Reward
from fewstep.guidance.swarm import Steering, Swarm

METHODS = (
    Method(
        "fk",
        kind="steering",
        paper="A General Framework for Inference-time Scaling and Steering of Diffusion Models (Singhal et al., 2025)",
        arxiv="2501.06848",
        claim="nearer to the tilted law, and of higher reward, than the best of as many samples",
        use="FeynmanKac",
    ),
)

POTENTIALS = ("difference", "max", "sum", "best", "importance")


class FeynmanKac(Steering):
    """Weights that telescope to `exp(strength reward(x0))`, so that the particles' law is `p(x0)` times that, whatever
    the rewards of the predictions x0(x_t) on the way say (Singhal et al., 2501.06848, section 3).

    With `u_i` = strength times the reward of evaluation i's prediction, the log weight grows at evaluation i by

        difference   u_i - u_(i-1), with 0 before the first
        max          the largest of u_1 ... u_i
        sum          u_1 + ... + u_i
        importance   nothing: plain importance sampling
        best         nothing, and the result is the particle of the highest reward: best-of-k

    and by `strength reward(x0)` less all that at the end. "max" and "sum" count early rewards many times over on the
    way, and so select more sharply than "difference".

    Raises:
        ValueError: an unknown potential; as `Goal`.
    """

    def __init__(
        self,
        reward: Reward | str | Mapping[str, Any] | None = None,
        strength: float = 1.0,
        potential: str = "difference",
        when: Sequence[int] | None = None,
    ):
        if potential not in POTENTIALS:
            raise suggest("potential", potential, POTENTIALS)
        self.goal, self.potential, self.scores = Goal(reward, strength, when), potential, reward is not None

    def weigh(self, swarm: Swarm, answer: Prediction) -> Tensor | None:
        if self.potential in ("best", "importance") or not self.goal.due(swarm):
            return None
        level, kept = self.goal.guess(swarm, answer.x0), swarm.kept
        before = kept.get("level")
        if before is not None and self.potential == "max":
            level = torch.maximum(level, before)
        elif before is not None and self.potential == "sum":
            level = level + before
        gained = level - before if before is not None and self.potential == "difference" else level
        kept["level"] = level
        kept["spent"] = gained + kept["spent"] if "spent" in kept else gained
        return gained

    def end(self, swarm: Swarm, samples: Tensor) -> Tensor | None:
        last = self.goal.last(swarm, samples)
        return last - swarm.kept["spent"] if "spent" in swarm.kept else last
