"""What the methods that match laws share: samples of the student, levels, and the score of the student's own law.

At a state `x_t = alpha_t x + sigma_t eps` of a student's sample x, the scores differ by
`s_fake - s_teacher = alpha_t (D_fake - D) / sigma_t^2`, in the two networks' x0.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.prediction import expand
from fewstep.distillation.distances import squared
from fewstep.distillation.fake import denoising, fake_of
from fewstep.distillation.levels import at_shares
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.teacher import BACKWARD
from fewstep.training.players import Player

LOW, HIGH = 0.02, 0.98  # shares of the way from the start to the clean end between which levels are drawn


class Matching(Distiller):
    """Two players: the fake score, of the student's samples, and the student, in one step or several.

    A student of k steps is trained at `t_1 > ... > t_k`, evenly spread from the start in `(sigma / alpha)^(1 / 7)`, and
    an iteration draws one of them; its input is made by the student's own earlier steps without gradient and noised
    again (DMD2's backward simulation, section 4.5). Levels are drawn evenly on the same scale.

    Both train with Adam's first beta at 0, as in Diff-Instruct and SiD: with momentum each overshoots where the other
    was, and turn by turn they do not come to rest.

    Args:
        ratio: turns of the fake score for one of the student. fake: what that score is, "copy" or "lora" (`fake_of`).

    Raises:
        ValueError: a ratio below 1, another word for the fake score.
    """

    kind = "jump"

    def __init__(self, setting: Setting, ratio: int, fake: str = "copy") -> None:
        if ratio < 1:
            raise ValueError(f"ratio must be at least 1 turn of the fake score for one of the student, got {ratio}")
        self.setting, self.teacher = setting, setting.teacher
        self.student, self.fake = setting.student(), fake_of(setting, fake)
        shares = torch.arange(setting.steps, dtype=torch.float64) / setting.steps
        self._times = at_shares(setting.process, setting.start, shares).tolist()
        # The fake's first, so that the student moves by a score that has seen its present samples.
        self.players = {
            "fake": self.player(self.fake, self._fake_loss, lr=setting.fake_lr),
            "student": self.player(self.student, self._loss, every=ratio, average=True),
        }

    def player(self, module: nn.Module, loss: Callable[[Batch], Tensor], **more: Any) -> Player:
        """A player without momentum."""
        made = self.setting.player(module, loss, **more)
        made.betas = (0.0, self.setting.betas[1])
        return made

    def times(self) -> tuple[float, ...]:
        return tuple(self._times)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        setting, steps = self.setting, self.setting.steps
        share = LOW + (HIGH - LOW) * setting.uniform(batch, generator)
        return {
            "z": setting.noise(batch, generator, steps),
            "place": int(torch.randint(steps, (), generator=generator)),
            "share": share,
            "t": at_shares(setting.process, setting.start, share),
            "eps": setting.noise(batch, generator),
            "condition": setting.condition(batch, generator),
        }

    def samples(self, drawn: Batch) -> Tensor:
        """Samples of the student at the drawn step, (B, *shape), with their gradient where one is asked for."""
        setting, z, condition = self.setting, drawn["z"], drawn["condition"]
        f, place = setting.counted(self.student), drawn["place"]
        x = setting.begin(z[:, 0])
        with torch.no_grad():
            for k in range(place):
                x0 = f(x, setting.times(self._times[k], len(x)), **condition).x0
                x = setting.noised(x0, z[:, k + 1], setting.times(self._times[k + 1], len(x)))
        return f(x, setting.times(self._times[place], len(x)), **condition).x0

    def answers(self, x: Tensor, drawn: Batch) -> tuple[Tensor, Tensor]:
        """x0 of the fake network and of the teacher at samples (B, *shape), diffused as drawn."""
        t, condition = drawn["t"], drawn["condition"]
        x_t = self.setting.noised(x, drawn["eps"], t)
        fake = self.setting.counted(self.fake)(x_t, t, **condition).x0
        return fake, self.teacher(x_t, t, **condition).x0

    def _fake_loss(self, drawn: Batch) -> Tensor:
        with torch.no_grad():
            x = self.samples(drawn)
        return self.fake_loss(x, drawn)

    def fake_loss(self, x: Tensor, drawn: Batch) -> Tensor:
        """The loss (B,) of the fake score at samples of the student."""
        self.setting.count.evaluations += BACKWARD * len(x)
        return denoising(self.fake, x, drawn["eps"], drawn["t"], drawn["condition"])

    def _loss(self, drawn: Batch) -> Tensor:
        return self.loss(self.samples(drawn), drawn)

    @abc.abstractmethod
    def loss(self, x: Tensor, drawn: Batch) -> Tensor:
        """The student's loss (B,) at its samples."""


def along(x: Tensor, direction: Tensor) -> Tensor:
    """A loss (B,), half the mean square of the step: its gradient in x is the direction over a sample's numbers."""
    return squared(x, (x - direction).detach()) / 2


def size(x: Tensor, real: Tensor) -> Tensor:
    """`mean |x - D|` of each sample (B,), without a gradient."""
    return (x - real).detach().abs().flatten(1).mean(1).clamp(min=1e-8)


def normalised(fake: Tensor, real: Tensor, x: Tensor) -> Tensor:
    """`(D_fake - D) / mean |x - D|` (DMD, eq. 8)."""
    return (fake - real) / expand(size(x, real), x)
