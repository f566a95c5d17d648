"""AnyFlow: a flow map by differences, then held to the teacher's law where its own jumps lead."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.distillation.distances import squared
from fewstep.distillation.fake import denoising, fake_of
from fewstep.distillation.levels import at_shares
from fewstep.distillation.maps import pairs
from fewstep.distillation.matching import HIGH, LOW, normalised
from fewstep.distillation.mean_flow import MeanVelocity
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.teacher import BACKWARD

METHODS = (
    Method(
        "any-flow",
        paper="AnyFlow: Any-Step Video Diffusion Model with On-Policy Flow Map Distillation (Gu et al., 2026)",
        arxiv="2605.13724",
        claim="a map for any number of steps, at last trained on its own jumps",
        use="AnyFlow",
        facts={"student": "map", "data": False, "pairing": True, "players": ("fake", "student"), "steps": "any"},
    ),
)

DIFFUSION, TO_ZERO = 0.5, 0.25  # of the pairs: s = t, and s the clean end; the rest are free
JUMPS = 3


class AnyFlow(MeanVelocity):
    """MeanFlow's identity at pairs of three sorts, half of them s = t, a quarter to the clean end, a quarter free, its
    derivative by central differences, which any network has; and in the last iterations distribution matching as well,
    on the ends of the student's own jumps: at most three from pure noise, with the gradient through all of them, so
    that a late jump mends what the ones before it did.

    It leaves the paper in these: the loss of the first stage goes on in the second, which keeps the pairing of noise
    and sample; the score of the student's samples (`fake`) trains from the first iteration on, on samples of one jump
    until the second stage, so that it has followed the student when it is needed; v is the teacher's, at noised data or
    at its own states.

    Args:
        policy: share of the iterations, the last ones, with the second stage. weight: of its loss.
        power, c: of the weight of samples in the first. states, tangent: `Maps`. fake: "copy" or "lora" (`fake_of`).

    Raises:
        ValueError: a share outside [0, 1], a negative weight, and what the parts raise.
    """

    def __init__(
        self, setting: Setting, policy: float = 0.25, weight: float = 1.0, power: float = 1.0, c: float = 1e-3,
        states: str | None = None, tangent: str = "difference", fake: str = "copy",
    ) -> None:  # fmt: skip
        if not 0 <= policy <= 1 or weight < 0:
            raise ValueError(f"policy must be a share from 0 to 1 and weight at least 0, got {policy} and {weight}")
        super().__init__(setting, power, c, states, tangent)
        self.policy, self.weight, self.fake = policy, weight, fake_of(setting, fake)
        # The fake's turn comes first, so that the student moves by a score that has seen its present samples.
        self.players = {"fake": setting.player(self.fake, self._fake_loss, lr=setting.fake_lr)} | self.players

    @property
    def on_policy(self) -> bool:
        """Whether this iteration belongs to the second stage."""
        return self.setting.step >= (1 - self.policy) * self.setting.iterations

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        setting = self.setting
        t, s = pairs(setting, batch, generator, DIFFUSION, TO_ZERO)
        level = LOW + (HIGH - LOW) * setting.uniform(batch, generator)
        drawn = {**self.draw_states(batch, generator), "t": t, "s": s}
        condition = setting.condition(batch, generator)
        condition.pop("to", None)
        places = setting.uniform(batch, generator, JUMPS - 1).sort(dim=1).values  # of the way
        return drawn | {
            "noise": setting.noise(batch, generator, 2),
            "jumps": int(torch.randint(1, JUMPS + 1, (), generator=generator)) if self.on_policy else 1,
            "places": at_shares(setting.process, setting.start, places),
            "level": at_shares(setting.process, setting.start, 1 - level),
            "asked": condition,
        }

    def rollout(self, drawn: Batch) -> Tensor:
        """The ends (B, *shape) of so many jumps from pure noise, through drawn times."""
        setting, jumps = self.setting, drawn["jumps"]
        x, t = setting.begin(drawn["noise"][:, 0]), setting.times(setting.start, len(drawn["noise"]))
        ends = [*drawn["places"].unbind(1)[: jumps - 1], setting.times(setting.process.t_zero, len(x))]
        for s in ends:
            x, t = self.landed(x, t, s, drawn["asked"]), s
        return x

    def _fake_loss(self, drawn: Batch) -> Tensor:
        with torch.no_grad():
            x = self.rollout(drawn)
        self.setting.count.evaluations += BACKWARD * len(x)
        return denoising(self.fake, x, drawn["noise"][:, 1], drawn["level"], drawn["asked"])

    def _loss(self, drawn: Batch) -> Tensor:
        x, t, condition = self.states_at(drawn, drawn["t"]), drawn["t"], drawn["condition"]
        loss = self.loss(x, t, drawn["s"], self.velocity(x, t, condition), condition)
        return loss + self.weight * self.policy_loss(self.rollout(drawn), drawn) if self.on_policy else loss

    def policy_loss(self, x: Tensor, drawn: Batch) -> Tensor:
        """Half the square (B,) of a step of the samples towards the teacher's law (DMD, eq. 7 and 8)."""
        t, asked = drawn["level"], drawn["asked"]
        with torch.no_grad():
            x_t = self.setting.noised(x, drawn["noise"][:, 1], t)
            fake = self.setting.counted(self.fake)(x_t, t, **asked).x0
            goal = x - normalised(fake, self.setting.teacher(x_t, t, **asked).x0, x)
        return squared(x, goal) / 2
