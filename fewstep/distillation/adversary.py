"""A discriminator beside a consistency loss: heads on the teacher's frozen features."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.prediction import expand
from fewstep.distillation.discriminator import Discriminator, sides
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.teacher import BACKWARD, FORWARD
from fewstep.networks.surgery import linked
from fewstep.training.players import Player


def diffused(setting: Setting, x: Tensor, s: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """States at s noised further, to those of a noisier t: `(alpha_t / alpha_s) x + ...`, eps standard normal."""
    process = setting.process
    ratio = process.alpha(t) / process.alpha(s)
    noise = (process.sigma(t).square() - (ratio * process.sigma(s)).square()).clamp(min=0).sqrt()
    return expand(ratio, x) * x + expand(noise, x) * eps


class Adversary:
    """Logits that states are real ones, from heads on the frozen features of the student's base.

    Args:
        features: names of blocks, by default the one in the middle. adversarial: "non-saturating" or "hinge".

    Raises:
        ValueError: an unknown block or name, a network that names no blocks.
    """

    def __init__(self, setting: Setting, features: Sequence[str] | None, adversarial: str) -> None:
        self.setting = setting
        self.of_critic, self.of_student = sides(adversarial)
        # The base stays as it is, but where it is the student itself.
        frozen = copy.deepcopy(setting.base) if setting.own else linked(setting.base)
        frozen = frozen.eval().requires_grad_(False)
        one = setting.condition(1, torch.Generator().manual_seed(0))
        named = {name: value.to(setting.device) for name, value in one.items()}
        self.heads = Discriminator(frozen, setting.shape, features, named, seed=setting.seed)

    def player(self, loss: object) -> Player:
        return self.setting.player(self.heads, loss)  # type: ignore[arg-type]

    def fooled(self, made: Tensor, t: Tensor, drawn: Batch) -> Tensor:
        """The student's side (B,) at states it made, with its gradient."""
        self.setting.count.evaluations += BACKWARD * len(made)
        return self.of_student(self.heads(made, t, drawn["condition"]))

    def told(self, real: Tensor, made: Tensor, t: Tensor, drawn: Batch) -> Tensor:
        """The critic's side (B,) at states of both kinds, themselves without gradient."""
        self.setting.count.evaluations += 2 * FORWARD * len(made)
        logits = [self.heads(x.detach(), t, drawn["condition"]) for x in (real, made)]
        return self.of_critic(*logits)
