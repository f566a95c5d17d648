"""Consistency trajectory models: jumps between any two times of the teacher's paths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.distillation.adversary import Adversary
from fewstep.distillation.distances import distance as named_distance
from fewstep.distillation.fake import denoising
from fewstep.distillation.levels import at_shares
from fewstep.distillation.maps import Condition, Maps
from fewstep.distillation.method import Batch, Setting
from fewstep.distillation.pairs import kept_masks
from fewstep.distillation.teacher import BACKWARD, step

METHODS = (
    Method(
        "ctm",
        paper="Consistency Trajectory Models: Learning Probability Flow ODE Trajectory of Diffusion (Kim et al., 2024)",
        arxiv="2310.02279",
        claim="jumps between any two times: more steps bring the sample nearer to the teacher's own",
        use="ConsistencyTrajectory",
        facts={
            "student": "map",
            "data": False,
            "pairing": True,
            "players": ("student", "discriminator"),
            "steps": "any",
        },
    ),
)

LARGEST = 10.0  # of a balanced weight: at first the student is the teacher at s = t, and there is nothing to balance


class ConsistencyTrajectory(Maps):
    """Soft consistency: `G-(G(x_t, t, s), s, 0)` against `G-(G-(step(x_t, t, u), u, s), s, 0)`, t > u >= s, by a
    distance (Kim et al., eq. 6), G- being the student with weights that stay; and denoising at s = t (eq. 8), which
    keeps the likelihood and the score in it, and an adversarial loss on `G(x_t, t, 0)` (eq. 10).

    Both further losses are balanced as in the paper: their weight is times the ratio of the gradients' norms at the
    last layer, which needs no further pass. It leaves the paper in these: t is even in `(sigma / alpha)^(1 / 7)`
    instead of on its grid, and u at most `reach` of the way from t, so that each teacher's step costs the same; half of
    the pairs go to the clean end; the distance is no network's; G- is not averaged. Denoising is of the teacher's own
    answers, which need no data and have its guidance inside, in the loss of the teacher's kind. The discriminator has
    heads on the frozen network's features at diffused samples; the paper's is StyleGAN-XL's.

    Args:
        reach: longest step of the teacher, as a share of the whole way. order, substeps: of that step.
        clean: share of the pairs whose s is the clean end. distance: "squared", "pseudo-huber" or "l1".
        denoise, gan: weights of denoising and of the adversarial loss, 0 for none; the latter needs real samples.
        balance: by the ratio of gradients; False takes the weights as they are.
        features, adversarial: of the discriminator. states: `Maps`.

    Raises:
        ValueError: a reach or share outside [0, 1], negative weights, steps that `teacher.step` does not take, and what
            the parts raise.
    """

    def __init__(
        self, setting: Setting, reach: float = 0.25, order: int = 2, substeps: int = 2, clean: float = 0.5,
        distance: str = "pseudo-huber", denoise: float = 1.0, gan: float = 0.0, balance: bool = True,
        features: Sequence[str] | None = None, adversarial: str = "non-saturating", states: str | None = None,
    ) -> None:  # fmt: skip
        if not 0 < reach <= 1 or not 0 <= clean <= 1:
            raise ValueError(f"reach must be a share above 0 and clean one from 0 to 1, got {reach} and {clean}")
        if min(denoise, gan) < 0:
            raise ValueError(f"denoise and gan must be weights of at least 0, got {denoise} and {gan}")
        if order not in (1, 2) or substeps < 1 or substeps & (substeps - 1):
            raise ValueError(f"order must be 1 or 2 and substeps a power of two, got {order} and {substeps}")
        self.reach, self.order, self.substeps, self.clean = reach, order, substeps, clean
        self.denoise, self.gan, self.balance = denoise, gan, balance
        self.distance = named_distance(distance)
        super().__init__(setting, "data" if gan else states)
        if gan:
            self.adversary = Adversary(setting, features, adversarial)
            self.players["discriminator"] = self.adversary.player(self._discriminator_loss)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        setting, shares = self.setting, self.setting.uniform(batch, generator, 4).unbind(1)
        t = shares[0]
        s = t + (1 - t) * shares[1]  # of the way from the start to the smallest noise
        to_clean = shares[2] < self.clean
        s = torch.where(to_clean, 1.0, s)
        u = t + torch.minimum(s - t, torch.full_like(t, self.reach)) * (1 - shares[3])
        times = [at_shares(setting.process, setting.start, share) for share in (t, u, s)]
        drawn = self.draw_states(batch, generator)
        drawn |= {"t": times[0], "u": times[1], "s": torch.where(to_clean, setting.process.t_zero, times[2])}
        if self.gan:
            drawn["level"] = at_shares(setting.process, setting.start, setting.uniform(batch, generator))
            drawn["noises"] = setting.noise(batch, generator, 2)
        return drawn

    def _loss(self, drawn: Batch) -> Tensor:
        x, t, condition = self.states_at(drawn, drawn["t"]), drawn["t"], drawn["condition"]
        loss = self.loss(x, t, drawn["u"], drawn["s"], condition)
        found = loss
        if self.denoise:
            further = self.denoising_loss(x, t, condition)
            found = found + self.denoise * self._balance(loss, further) * further
        if self.gan:
            further = self.adversary.fooled(self._diffused(self._made(x, drawn), drawn, 0), drawn["level"], drawn)
            found = found + self.gan * self._balance(loss, further) * further
        return found

    def loss(self, x: Tensor, t: Tensor, u: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """The distance (B,) of the two ways from t to s, both taken on to the clean end."""
        setting = self.setting
        with torch.no_grad(), kept_masks(setting.device):
            y = step(setting.teacher, x, t, u, condition, order=self.order, substeps=self.substeps)
            goal = self._end(self.still(y, u, s, condition), s, condition)
        return self.distance(self._end(self.landed(x, t, s, condition), s, condition), goal)

    def _end(self, x: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """`G-(x, s, 0)`."""
        return self.still(x, s, torch.full_like(s, self.setting.process.t_zero), condition)

    def denoising_loss(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The loss (B,) at s = t, of the teacher's x0 and eps in place of a sample's."""
        with torch.no_grad():
            answer = self.setting.teacher(x, t, **condition)
        self.setting.count.evaluations += BACKWARD * len(x)
        return denoising(self.student, answer.x0, answer.eps, t, condition)

    def _balance(self, loss: Tensor, further: Tensor) -> Tensor | float:
        """The ratio of the gradients' norms at the last layer, over all processes."""
        if not (self.balance and loss.requires_grad):
            return 1.0
        weights = [each for each in self.student.parameters() if each.requires_grad]
        last = next((each for each in reversed(weights) if each.ndim > 1), weights[-1])
        norms = []
        for part in (loss, further):
            (slope,) = torch.autograd.grad(part.mean(), last, retain_graph=True, allow_unused=True)
            slope = torch.zeros_like(last) if slope is None else slope
            norms.append((slope if self.setting.reduce is None else self.setting.reduce(slope)).norm())
        return (norms[0] / norms[1].clamp(min=torch.finfo(norms[1].dtype).tiny)).clamp(max=LARGEST)

    # The discriminator

    def _made(self, x: Tensor, drawn: Batch) -> Tensor:
        t = drawn["t"]
        return self.landed(x, t, torch.full_like(t, self.setting.process.t_zero), drawn["condition"])

    def _diffused(self, x0: Tensor, drawn: Batch, which: int) -> Tensor:
        """Samples, made (0) or real (1), at the drawn level."""
        return self.setting.noised(x0, drawn["noises"][:, which], drawn["level"])

    def _discriminator_loss(self, drawn: Batch) -> Tensor:
        with torch.no_grad():
            made = self._made(self.states_at(drawn, drawn["t"]), drawn)
        states = [self._diffused(x0, drawn, which) for which, x0 in enumerate((made, drawn["x0"]))]
        return self.adversary.told(states[1], states[0], drawn["level"], drawn)
