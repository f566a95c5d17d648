"""Distribution matching: the student's samples move where the teacher's score and that of their own law differ.

At a state `x_t = alpha_t x + sigma_t eps` of a student's sample x the scores differ by
`s_fake - s_teacher = alpha_t (D_fake - D) / sigma_t^2`, in the two networks' x0. Its product with `dx_t / dtheta` is
the gradient of the KL divergence of the diffused laws.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewstep.core.methods import Method
from fewstep.core.plan import Plan
from fewstep.core.prediction import expand
from fewstep.distillation.discriminator import Discriminator, sides
from fewstep.distillation.distances import squared
from fewstep.distillation.fake import denoising, fake_of
from fewstep.distillation.levels import at_shares, grid
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.regression import Pairing
from fewstep.distillation.teacher import BACKWARD

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
        facts={"student": "jump", "data": False, "pairing": True, "players": ("fake", "student"), "steps": 1},
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

LOW, HIGH = 0.02, 0.98  # shares of the way from the clean end to the start between which levels are drawn
REAL, CLASSIFY = 3e-3, 1e-2  # weights of the adversarial loss in the student's and in the fake's (DMD2, appendix F)


class Matching(Distiller):
    """What the methods share: samples of the student in one step or several, levels, and the fake score's turn.

    A student of k steps is trained at `t_1 > ... > t_k`: an iteration draws one of them, whose input is made by the
    student's own earlier steps without gradient and noised again (DMD2's backward simulation, section 4.5).
    Levels are drawn evenly in `(sigma / alpha)^(1 / 7)`.
    """

    kind = "jump"

    def __init__(self, setting: Setting, ratio: int) -> None:
        if ratio < 1:
            raise ValueError(f"ratio must be at least 1 turn of the fake score for one of the student, got {ratio}")
        self.setting = setting
        self.student, self.fake = setting.student(), fake_of(setting.fake or setting.base)
        self._times = grid(setting.process, setting.steps, setting.start)[:-1].tolist()
        # The fake's first, so that the student moves by a score that has seen its present samples.
        self.players = {"fake": setting.player(self._parts(), self._fake_loss, lr=setting.fake_lr)}
        self.players["student"] = setting.player(self.student, self._loss, every=ratio, average=True)

    def _parts(self) -> nn.Module:
        """What trains with the fake score."""
        return self.fake

    def times(self) -> tuple[float, ...]:
        return tuple(self._times)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        setting, steps = self.setting, self.setting.steps
        shares = LOW + (HIGH - LOW) * setting.uniform(batch, generator)
        return {
            "z": setting.noise(batch, generator, steps),
            "place": int(torch.randint(steps, (), generator=generator)),
            "t": at_shares(setting.process, setting.start, 1 - shares),
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

    def _fake_loss(self, drawn: Batch) -> Tensor:
        with torch.no_grad():
            x = self.samples(drawn)
        return self.fake_loss(x, drawn)

    def fake_loss(self, x: Tensor, drawn: Batch) -> Tensor:
        """The loss (B,) of the fake score on samples of the student."""
        self.setting.count.evaluations += BACKWARD * len(x)
        return denoising(self.fake, x, drawn["eps"], drawn["t"], drawn["condition"])

    def answers(self, x_t: Tensor, drawn: Batch) -> tuple[Tensor, Tensor]:
        """x0 of the fake network and of the teacher at noisy states."""
        t, condition = drawn["t"], drawn["condition"]
        fake = self.setting.counted(self.fake)(x_t, t, **condition).x0
        return fake, self.setting.teacher(x_t, t, **condition).x0

    @abc.abstractmethod
    def direction(self, x: Tensor, drawn: Batch) -> Tensor:
        """The gradient in x (B, *shape), itself without one."""

    def _loss(self, drawn: Batch) -> Tensor:
        return self.loss(self.samples(drawn), drawn)

    def loss(self, x: Tensor, drawn: Batch) -> Tensor:
        """The student's loss (B,) at its samples: half the square of a step along `direction`."""
        with torch.no_grad():
            target = x - self.direction(x, drawn)
        return squared(x, target) / 2


class DiffInstruct(Matching):
    """`w(t) (s_fake - s_teacher)(x_t) dx_t / dtheta` (Luo et al., eq. 3.4).

    The weight is `w = sigma_t^2 / (alpha_t^2 data_std)`, by which every level moves x by the difference of the two
    answers in units of the data's deviation; the paper leaves it open and takes the teacher's training weight.

    Args:
        ratio: turns of the fake score for one of the student.
    """

    def __init__(self, setting: Setting, ratio: int = 1) -> None:
        super().__init__(setting, ratio)

    def direction(self, x: Tensor, drawn: Batch) -> Tensor:
        fake, real = self.answers(self.setting.noised(x, drawn["eps"], drawn["t"]), drawn)
        return (fake - real) / self.setting.data_std


def normalised(fake: Tensor, real: Tensor, x: Tensor) -> Tensor:
    """`(D_fake - D) / mean |x - D|`, the mean over each sample (DMD, eq. 8)."""
    size = (x - real).abs().flatten(1).mean(1).clamp(min=1e-8)
    return (fake - real) / expand(size, x)


class DMD(Matching):
    """`normalised` differences as a target without gradient, and a regression on stored pairs of the teacher's.

    The paper's regression is in LPIPS, which needs a network of its own; here it is the squared error.

    Args:
        ratio: turns of the fake score for one of the student. pairs, plan: of the regression (`kd`). weight: of the
            regression (the paper's 0.25).
    """

    def __init__(
        self, setting: Setting, ratio: int = 1, pairs: int = 8192, plan: Plan | None = None, weight: float = 0.25
    ) -> None:
        if setting.steps != 1:
            raise ValueError(f"the student of dmd takes one step, not {setting.steps}: 'dmd2' takes several")
        super().__init__(setting, ratio)
        self.weight, self.pairing = weight, Pairing(setting, pairs, plan)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        return super().draw(batch, generator) | {"rows": self.pairing.rows(batch, generator)}

    def direction(self, x: Tensor, drawn: Batch) -> Tensor:
        return normalised(*self.answers(self.setting.noised(x, drawn["eps"], drawn["t"]), drawn), x)

    def _loss(self, drawn: Batch) -> Tensor:
        z, x0, condition = self.pairing.taken(drawn["rows"])
        f = self.setting.counted(self.student)
        made = f(self.setting.begin(z), self.setting.times(self.setting.start, len(z)), **condition).x0
        return super()._loss(drawn) + self.weight * squared(made, x0)


class DMD2(Matching):
    """`normalised` differences without pairs, the fake score `ratio` turns ahead, and heads on the fake network.

    The heads tell diffused real data from diffused samples at the drawn level; classifying trains them and the fake
    network, whose features the student then moves along.

    Args:
        ratio: turns of the fake score for one of the student. gan: weight of the adversarial loss in the student's, 0
            for none: then no data are needed. classify: its weight in the fake's. features: blocks that the heads read.
            adversarial: "non-saturating" or "hinge". simulate: whether the inputs of later steps are the student's own;
            False noises real data in their place.
    """

    def __init__(
        self, setting: Setting, ratio: int = 5, gan: float = REAL, classify: float = CLASSIFY,
        features: Sequence[str] | None = None, adversarial: str = "non-saturating", simulate: bool = True,
    ) -> None:  # fmt: skip
        if min(gan, classify) < 0:
            raise ValueError(f"weights of the adversarial loss must be at least 0, got {gan} and {classify}")
        self.gan, self.classify, self.simulate = gan, classify, simulate
        self.features, self.sides = features, sides(adversarial)
        self.real = bool(gan) or not simulate  # whether data are drawn
        super().__init__(setting, ratio)

    def _parts(self) -> nn.Module:
        if not self.gan:
            return self.fake
        setting = self.setting
        one = setting.condition(1, torch.Generator().manual_seed(0))
        named = {name: value.to(setting.device) for name, value in one.items()}
        self.discriminator = Discriminator(self.fake, setting.shape, self.features, named)
        return nn.ModuleDict({"fake": self.fake, "heads": self.discriminator})

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        drawn = super().draw(batch, generator)
        if not self.real:
            return drawn
        x0, condition = self.setting.real(batch, generator)
        return drawn | {"x0": x0, "condition": condition, "noise": self.setting.noise(batch, generator)}

    def samples(self, drawn: Batch) -> Tensor:
        if self.simulate or not drawn["place"]:
            return super().samples(drawn)
        t = self.setting.times(self._times[drawn["place"]], len(drawn["x0"]))
        x = self.setting.noised(drawn["x0"], drawn["noise"], t)
        return self.setting.counted(self.student)(x, t, **drawn["condition"]).x0

    def direction(self, x: Tensor, drawn: Batch) -> Tensor:
        return normalised(*self.answers(self.setting.noised(x, drawn["eps"], drawn["t"]), drawn), x)

    def _logits(self, x: Tensor, eps: Tensor, drawn: Batch) -> Tensor:
        self.setting.count.evaluations += BACKWARD * len(x)
        return self.discriminator(self.setting.noised(x, eps, drawn["t"]), drawn["t"], drawn["condition"])

    def fake_loss(self, x: Tensor, drawn: Batch) -> Tensor:
        loss = super().fake_loss(x, drawn)
        if not self.gan:
            return loss
        real, made = self._logits(drawn["x0"], drawn["noise"], drawn), self._logits(x, drawn["eps"], drawn)
        return loss + self.classify * self.sides[0](real, made)

    def loss(self, x: Tensor, drawn: Batch) -> Tensor:
        loss = super().loss(x, drawn)
        return loss + self.gan * self.sides[1](self._logits(x, drawn["eps"], drawn)) if self.gan else loss
