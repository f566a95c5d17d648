"""Latent adversarial distillation: hinge heads on every block of the frozen teacher, and ADD's regression to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.distillation.adversary import Adversary
from fewstep.distillation.discriminator import r1 as penalty
from fewstep.distillation.distances import squared
from fewstep.distillation.levels import at_shares
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.teacher import BACKWARD, FORWARD
from fewstep.networks.blocks import blocks_of

METHODS = (
    Method(
        "ladd",
        paper="Fast High-Resolution Image Synthesis with Latent Adversarial Diffusion Distillation"
        " (Sauer et al., 2024)",
        arxiv="2403.12015",
        claim="hinge heads on every block of the frozen teacher, beside a regression to its answers",
        use="LADD",
        facts={
            "student": "jump",
            "data": True,
            "pairing": False,
            "players": ("discriminator", "student"),
            "steps": "any",
            # Within its margins a hinge says nothing of a bias: a fast critic leaves them.
            "small": {"levels": [0.3, 0.7], "distil": 0.5, "critic_lr": 0.5},
        },
    ),
)

LEVELS = (0.2, 0.4, 0.6, 0.8)  # shares of the way from the start to the clean end
BETAS = (0.0, 0.99)


class LADD(Distiller):
    """The student answers at its own times from noised real samples, and its answers are diffused to a drawn level,
    where heads on the teacher's blocks tell them from diffused real ones (Sauer et al., section 3).

    Each head has a hinge loss of its own; its penalty is R1 at the real samples. `distil` is the weight of ADD's other
    loss (Sauer et al., 2023, arXiv:2311.17042, eq. 3): the teacher's x0 at the diffused answer as a target without a
    gradient, weighted by `alpha / sqrt(alpha^2 + sigma^2)`, which for a process that preserves the variance is the
    paper's alpha. A student of k steps has k times, evenly from the start in `(sigma / alpha)^(1 / 7)`; each draw has
    one of them.

    Args:
        gan, distil: weights of the two losses of the student; without the first no discriminator trains.
        levels: where answers are judged, one drawn for each sample: shares of the way from the start (0) to the
            smallest noise (1), on the same scale. r1: weight of `|d logit / dx|^2 / 2`, 0 for none.
        features: blocks with heads, by default all. critic_lr: the heads' rate, by default the student's.

    Raises:
        ValueError: a negative weight, or both 0; levels outside of 0 to 1, or none; an unknown block.
    """

    kind = "jump"

    def __init__(
        self, setting: Setting, gan: float = 1.0, distil: float = 1.0, levels: Sequence[float] = LEVELS,
        r1: float = 0.01, features: Sequence[str] | None = None, critic_lr: float | None = None,
    ) -> None:  # fmt: skip
        if min(gan, distil, r1) < 0 or gan + distil == 0:
            raise ValueError(
                f"gan, distil and r1 must be at least 0, and one of the first two above, got {gan:g}, {distil:g} and"
                f" {r1:g}"
            )
        if not levels or not all(0 <= level <= 1 for level in levels):
            raise ValueError(f"levels must be shares of the way, 0 to 1, at least one, got {list(levels)}")
        self.setting, self.gan, self.distil, self.penalty = setting, gan, distil, r1
        process, steps = setting.process, setting.steps
        self._times = at_shares(process, setting.start, torch.arange(steps, dtype=torch.float64) / steps)
        self._levels = at_shares(process, setting.start, torch.tensor(levels, dtype=torch.float64))
        self.student, self.players = setting.student(), {}
        if gan:
            every = list(blocks_of(setting.base)) if features is None else features
            self.critic = Adversary(setting, every, "hinge")
            self.players["discriminator"] = setting.player(self.critic.heads, self._critic_loss, lr=critic_lr)
        self.players["student"] = setting.player(self.student, self._loss, average=True)
        for player in self.players.values():
            player.betas = BETAS

    def times(self) -> tuple[float, ...]:
        return tuple(self._times.tolist())

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        setting = self.setting
        x0, condition = setting.real(batch, generator)
        return {
            "x0": x0,
            "condition": condition,
            "from": self._times[torch.randint(len(self._times), (batch,), generator=generator)],
            "t": self._levels[torch.randint(len(self._levels), (batch,), generator=generator)],
            "eps": setting.noise(batch, generator, 3),  # of the student's input, and of the two that are judged
        }

    def answers(self, drawn: Batch) -> Tensor:
        """The student's samples (B, *shape), with their gradient where one is asked for."""
        setting, t = self.setting, drawn["from"]
        x = setting.noised(drawn["x0"], drawn["eps"][:, 0], t)
        return setting.counted(self.student)(x, t, **drawn["condition"]).x0

    def _critic_loss(self, drawn: Batch) -> Tensor:
        setting, t, condition = self.setting, drawn["t"], drawn["condition"]
        with torch.no_grad():
            made = setting.noised(self.answers(drawn), drawn["eps"][:, 2], t)
            real = setting.noised(drawn["x0"], drawn["eps"][:, 1], t)
        setting.count.evaluations += 2 * FORWARD * len(made)  # the teacher's features are constants
        loss = self.critic.of_critic(*(self.critic.heads.each(x, t, condition) for x in (real, made))).mean(0)
        if not self.penalty:
            return loss
        setting.count.evaluations += 2 * BACKWARD * len(made)
        return loss + self.penalty / 2 * penalty(self.critic.heads, real, t, condition)

    def _loss(self, drawn: Batch) -> Tensor:
        setting, t, condition, process = self.setting, drawn["t"], drawn["condition"], self.setting.process
        x0 = self.answers(drawn)
        x = setting.noised(x0, drawn["eps"][:, 2], t)
        loss = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
        if self.gan:
            setting.count.evaluations += BACKWARD * len(x)
            loss = loss + self.gan * self.critic.of_student(self.critic.heads.each(x, t, condition)).mean(0)
        if self.distil:
            with torch.no_grad():
                target = setting.teacher(x, t, **condition).x0
            alpha, sigma = process.alpha(t), process.sigma(t)
            loss = loss + self.distil * (alpha / (alpha**2 + sigma**2).sqrt()).to(x0) * squared(x0, target)
        return loss
