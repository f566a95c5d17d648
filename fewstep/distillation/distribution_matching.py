"""Distribution matching: the student's samples move where the teacher's score and that of their own law differ.

The product of `s_fake - s_teacher` with `dx_t / dtheta` is the gradient of the KL divergence of the diffused laws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.distillation.discriminator import Discriminator, sides
from fewstep.distillation.distances import squared
from fewstep.distillation.matching import Matching, along, normalised
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.regression import Pairing
from fewstep.distillation.teacher import BACKWARD, FORWARD

METHODS = (
    Method(
        "diff-instruct",
        paper="Diff-Instruct: A Universal Approach for Transferring Knowledge From Pre-trained Diffusion Models"
        " (Luo et al., 2023)",
        arxiv="2305.18455",
        claim="the gradient of the KL divergence of diffused laws, from two scores",
        use="DiffInstruct",
        facts={"student": "jump", "data": False, "pairing": False, "players": ("fake", "student"), "steps": "any"},
    ),
    Method(
        "dmd",
        paper="One-step Diffusion with Distribution Matching Distillation (Yin et al., 2024)",
        arxiv="2311.18828",
        claim="distribution matching, held to stored pairs of the teacher's by a regression",
        use="DMD",
        facts={
            "student": "jump",
            "data": False,
            "pairing": True,
            "players": ("fake", "student"),
            "steps": 1,
            "small": {"pairs": 32, "plan": "ddim"},
        },
    ),
    Method(
        "dmd2",
        paper="Improved Distribution Matching Distillation for Fast Image Synthesis (Yin et al., 2024)",
        arxiv="2405.14867",
        claim="no pairs: five turns of the fake score for one of the student, and a discriminator on real data",
        use="DMD2",
        facts={"student": "jump", "data": True, "pairing": False, "players": ("fake", "student"), "steps": "any"},
    ),
)

REAL, CLASSIFY = 3e-3, 1e-2  # weights of the adversarial loss in the student's and in the fake's (DMD2, appendix F)
REALS = ("data", "teacher")


class DiffInstruct(Matching):
    """`w(t) (s_fake - s_teacher)(x_t) dx_t / dtheta` (Luo et al., theorem 3.1).

    The weight is `w = sigma_t^2 / (alpha_t^2 data_std)`, by which every level moves x by the difference of the two
    answers in units of the data's deviation; the paper leaves it open.

    Args:
        ratio: turns of the fake score for one of the student. fake: "copy" or "lora" (`fake_of`).
    """

    def __init__(self, setting: Setting, ratio: int = 1, fake: str = "copy") -> None:
        super().__init__(setting, ratio, fake)

    def loss(self, x: Tensor, drawn: Batch) -> Tensor:
        with torch.no_grad():
            fake, real = self.answers(x, drawn)
        return along(x, (fake - real) / self.setting.data_std)


class DMD(Matching):
    """`normalised` differences as a target without gradient, and a regression on stored pairs of the teacher's.

    The paper's regression is in LPIPS, which needs a network of its own; here it is the squared error.

    Args:
        ratio: turns of the fake score for one of the student. pairs, plan: of the regression (`kd`). weight: of the
            regression (the paper's 0.25). fake: "copy" or "lora" (`fake_of`).

    Raises:
        ValueError: more than one step, a ratio below 1, and what `Pairing` raises.
    """

    def __init__(
        self, setting: Setting, ratio: int = 1, pairs: int = 8192, plan: Plan | str | None = None,
        weight: float = 0.25, fake: str = "copy",
    ) -> None:  # fmt: skip
        if setting.steps != 1:
            raise ValueError(f"the student of dmd takes one step, not {setting.steps}: 'dmd2' takes several")
        super().__init__(setting, ratio, fake)
        self.weight, self.pairing = weight, Pairing(setting, pairs, plan)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        return super().draw(batch, generator) | {"rows": self.pairing.rows(batch, generator)}

    def _loss(self, drawn: Batch) -> Tensor:
        matching, regression = super()._loss(drawn), self.regression(*self.pairing.taken(drawn["rows"]))
        return matching + self.weight * regression

    def loss(self, x: Tensor, drawn: Batch) -> Tensor:
        with torch.no_grad():
            fake, real = self.answers(x, drawn)
        return along(x, normalised(fake, real, x))

    def regression(self, z: Tensor, x0: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The squared error (B,) of the student's answers to noises from the ends of the teacher's plan."""
        f, t = self.setting.counted(self.student), self.setting.times(self.setting.start, len(z))
        return squared(f(self.setting.begin(z), t, **condition).x0, x0)


class DMD2(Matching):
    """`normalised` differences without pairs, the fake score `ratio` turns ahead, and heads on the fake network.

    The heads tell diffused real samples from the student's at the drawn level; classifying trains them and the fake
    network, whose features the student then moves along. Both sides have the conditions of the real samples.

    Args:
        ratio: turns of the fake score for one of the student. gan: weight of the adversarial loss in the student's, 0
            for none: then no data are needed. classify: its weight in the fake's. features: blocks that the heads read.
            adversarial: "non-saturating" or "hinge". simulate: whether the inputs of later steps are the student's own;
            False noises real samples in their place. real: "data", or "teacher" for `pairs` samples made by its `plan`
            (`kd`) in their place, and no data. fake: "copy" or "lora" (`fake_of`).

    Raises:
        ValueError: a ratio below 1, a negative weight, an unknown loss, block or kind of real samples, a network that
            names no blocks; in `draw`, no data where they are needed.
    """

    needs_heads: ClassVar[bool] = False  # even where the student has no adversarial loss

    def __init__(
        self, setting: Setting, ratio: int = 5, gan: float = REAL, classify: float = CLASSIFY,
        features: Sequence[str] | None = None, adversarial: str = "non-saturating", simulate: bool = True,
        real: str = "data", pairs: int = 8192, plan: Plan | str | None = None, fake: str = "copy",
    ) -> None:  # fmt: skip
        if min(gan, classify) < 0:
            raise ValueError(f"weights of the adversarial loss must be at least 0, got {gan} and {classify}")
        if real not in REALS:
            raise suggest("kind of real samples", real, REALS)
        super().__init__(setting, ratio, fake)
        self.gan, self.classify, self.simulate, self.sides = gan, classify, simulate, sides(adversarial)
        self.discriminator = self.judge(features) if gan or self.needs_heads else None
        self.pairing = Pairing(setting, pairs, plan) if self.uses_real and real == "teacher" else None

    @property
    def uses_real(self) -> bool:
        """Whether real samples are drawn."""
        return self.discriminator is not None or not self.simulate

    def judge(self, features: Sequence[str] | None) -> Discriminator:
        """Heads on the fake network, which train with it."""
        setting = self.setting
        one = setting.condition(1, torch.Generator().manual_seed(0))
        condition = {name: value.to(setting.device) for name, value in one.items()}
        made = Discriminator(self.fake, setting.shape, features, condition, setting.seed)
        both = nn.ModuleDict({"fake": self.fake, "heads": made})
        self.players["fake"] = self.player(both, self._fake_loss, lr=setting.fake_lr)
        return made

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        drawn = super().draw(batch, generator)
        if not self.uses_real:
            return drawn
        if self.pairing is None:
            x0, condition = self.setting.real(batch, generator)
        else:
            _, x0, condition = self.pairing.taken(self.pairing.rows(batch, generator))
        return drawn | {"x0": x0, "condition": condition, "noise": self.setting.noise(batch, generator)}

    def samples(self, drawn: Batch) -> Tensor:
        if self.simulate or not drawn["place"]:
            return super().samples(drawn)
        t = self.setting.times(self._times[drawn["place"]], len(drawn["x0"]))
        x = self.setting.noised(drawn["x0"], drawn["noise"], t)
        return self.setting.counted(self.student)(x, t, **drawn["condition"]).x0

    def logits(self, x: Tensor, eps: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Logits (B,) that samples are real, diffused to times (B,)."""
        assert self.discriminator is not None
        self.setting.count.evaluations += len(x) * (BACKWARD if torch.is_grad_enabled() else FORWARD)
        return self.discriminator(self.setting.noised(x, eps, t), t, condition)

    def fake_loss(self, x: Tensor, drawn: Batch) -> Tensor:
        loss = super().fake_loss(x, drawn)
        if self.discriminator is None:
            return loss
        twice = {name: torch.cat([value, value]) for name, value in drawn["condition"].items()}
        both, eps = torch.cat([drawn["x0"], x]), torch.cat([drawn["noise"], drawn["eps"]])
        real, made = self.logits(both, eps, torch.cat([drawn["t"], drawn["t"]]), twice).chunk(2)
        return loss + self.classify * self.sides[0](real, made)

    def loss(self, x: Tensor, drawn: Batch) -> Tensor:
        loss = along(x, self.direction(x, drawn))
        if not self.gan:
            return loss
        return loss + self.gan * self.sides[1](self.logits(x, drawn["eps"], drawn["t"], drawn["condition"]))

    @torch.no_grad()
    def direction(self, x: Tensor, drawn: Batch) -> Tensor:
        """Where the samples (B, *shape) should move away from, without a gradient."""
        fake, real = self.answers(x, drawn)
        return normalised(fake, real, x)
