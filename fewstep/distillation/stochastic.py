"""Stochastic consistency distillation: the target's side is reached by the teacher's reverse SDE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.distillation.adversary import Adversary
from fewstep.distillation.consistency import OnGrid
from fewstep.distillation.distances import distance as named_distance
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.pairs import AVERAGE, noisy
from fewstep.distillation.teacher import step

METHODS = (
    Method(
        "scott",
        paper="SCott: Accelerating Diffusion Models with Stochastic Consistency Distillation (Liu et al., 2025)",
        arxiv="2403.01505",
        claim="fresh noise on the way mends what a teacher's path has wrong, and a discriminator the rest",
        use="Stochastic",
        facts={
            "student": "jump",
            "data": True,
            "pairing": False,
            "players": ("student", "discriminator"),
            "steps": "any",
        },
    ),
)


class Stochastic(OnGrid):
    """SCott: consistency distillation whose states at s are reached in `substeps` of the reverse SDE of strength `eta`,
    and an adversarial loss on the student's x0 (Liu et al., section 3).

    The paper's discriminator is the teacher's backbone under adapters, told the time and the condition; here its heads
    stand on the frozen backbone's features, of x0 diffused to the pair's own time, which tells them both. With `eta=0`,
    `substeps=1` and `gan=0` it is `consistency` with steps of order 1.

    An answer is a mean over the noise on the way. For a Gaussian of variance c (alpha = 1) it comes to rest at
    `m + (c / (c + sigma^2))^((1 + eta) / 2) (x - m)`: samples of one step are too narrow by `(c / (c + sigma^2))^(eta /
    2)`, and every further step, noised and answered from a smaller sigma, by less. So it is for 2 to 4 steps, as in the
    paper.

    Args:
        levels: of the grid. eta: 0 is the ODE, 1 the reverse diffusion. substeps: within a pair, a power of two.
        gan: weight of the adversarial loss, 0 for none: then no data are needed. features: names of the blocks that
            the heads read. adversarial: "non-saturating" or "hinge". average, distance, weight: as `consistency`.

    Raises:
        ValueError: numbers below 0, an unknown name or block, an adversarial loss without data.
    """

    def __init__(
        self, setting: Setting, levels: int = 18, eta: float = 0.5, substeps: int = 2, gan: float = 0.1,
        features: Sequence[str] | None = None, adversarial: str = "non-saturating", average: float = AVERAGE,
        distance: str = "pseudo-huber", weight: str = "inverse",
    ) -> None:  # fmt: skip
        if min(eta, gan) < 0:
            raise ValueError(f"eta and gan must be at least 0, got {eta} and {gan}")
        self.eta, self.gan = eta, gan
        found, states = named_distance(distance), "data" if gan else None
        super().__init__(setting, levels, average, found, weight, states=states, substeps=substeps)
        if gan:
            self.adversary = Adversary(setting, features, adversarial)
            self.players["discriminator"] = self.adversary.player(self.critic_loss)

    def levels(self, batch: int, generator: torch.Generator) -> Batch:
        drawn = super().levels(batch, generator)
        if self.eta:
            drawn["noises"] = self.setting.noise(batch, generator, self.substeps)
        if self.gan:
            drawn["noise"] = self.setting.noise(batch, generator)
        return drawn

    @torch.no_grad()
    def reached(self, x: Tensor, drawn: Batch) -> Tensor:
        return step(
            self.teacher, x, drawn["t"], drawn["s"], drawn["condition"],
            substeps=self.substeps, eta=self.eta, noises=drawn.get("noises"),
        )  # fmt: skip

    def loss(self, drawn: Batch) -> Tensor:
        made, goal = self.pair(drawn)
        loss = self.compared(made, goal, drawn)
        if not self.gan:
            return loss
        seen = self.setting.noised(made, drawn["noise"], drawn["t"])
        return loss + self.gan * self.adversary.fooled(seen, drawn["t"], drawn)

    def critic_loss(self, drawn: Batch) -> Tensor:
        """The discriminator's loss (B,): data against the student's answers, both at the pair's time."""
        t, noise = drawn["t"], drawn["noise"]
        with torch.no_grad():
            made = self.f(noisy(self.setting, drawn), t, **drawn["condition"]).x0
        real, made = (self.setting.noised(x0, noise, t) for x0 in (drawn["x0"], made))
        return self.adversary.told(real, made, t, drawn)
