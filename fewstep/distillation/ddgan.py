"""Denoising diffusion GANs: a few large steps, each drawn, and a discriminator of pairs of neighbouring states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.distillation.adversary import diffused
from fewstep.distillation.discriminator import Discriminator, r1, sides
from fewstep.distillation.features import last_block
from fewstep.distillation.levels import at_shares
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.teacher import BACKWARD, FORWARD
from fewstep.sampling.ddim import posterior

METHODS = (
    Method(
        "ddgan",
        paper="Tackling the Generative Learning Trilemma with Denoising Diffusion GANs (Xiao et al., 2022)",
        arxiv="2112.07804",
        claim="a few large steps whose x0 is drawn, by a discriminator of neighbouring states, from data",
        use="DDGAN",
        facts={
            "student": "jump",
            "data": True,
            "pairing": False,
            "players": ("discriminator", "student"),
            "steps": "any",
            "usual_steps": 4,
            "small": {"latent": 2, "lazy": 2},
        },
    ),
)

LATENT = 64  # numbers of the latent, where a state has as many
BETAS = (0.5, 0.9)  # of both players' Adam (Xiao et al., appendix C)


class Pairs(nn.Module):
    """Logits `(B,)` that a state at s is the real one before a noisier state at t.

    A denoiser's network that trains, with heads on its features of the state at s; the one at t, at unit scale, is a
    further input of it, a `latent`.

    Args:
        model: whose network it is. shape: of a sample. features: names of blocks, by default the last. condition: of
            one sample, for the call that finds the sizes. std: of the data. seed: of the heads' first weights.

    Raises:
        ValueError: a network that takes no further inputs, an unknown block.
    """

    def __init__(
        self, model: Denoiser, shape: Sequence[int], features: Sequence[str] | None, condition: Mapping[str, Any],
        std: float, seed: int,
    ) -> None:  # fmt: skip
        super().__init__()
        model = Setting.told_more(model, copied=False, latent=math.prod(shape)).requires_grad_(True)
        self.judge = Discriminator(model, shape, features or last_block(model), condition, seed)
        self.network, self.std = self.judge.read.model, std
        # What comes after the last block has no part in a logit, and does not train.
        x = torch.zeros(1, *shape, dtype=model.dtype, device=model.device)
        t = torch.full((1,), float(model.process.t_max), dtype=torch.float64, device=model.device)
        parameters = list(self.parameters())
        found = torch.autograd.grad(self(x, t, x, t, condition).sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.requires_grad_(gradient is not None)

    def forward(self, x_s: Tensor, s: Tensor, x_t: Tensor, t: Tensor, condition: Mapping[str, Any]) -> Tensor:
        process = self.network.process
        scale = (process.sigma(t).square() + (process.alpha(t) * self.std).square()).sqrt()
        return self.judge(x_s, s.clamp(min=process.t_min), {**condition, "latent": x_t / expand(scale, x_t)})


class DDGAN(Distiller):
    """`x_s ~ q(x_s | x_t, G(x_t, z, t))` between T neighbouring times, judged as pairs (Xiao et al., eq. 4 to 6).

    The kernel of a large step has several modes: z, a further input of the student's network, lets it draw one of them,
    where a function of x_t alone would answer with one x0. Samples are drawn by the solver "ddgan". The student begins
    as the base, whose x0 is the mean. The times are evenly spread from the start in `(sigma / alpha)^(1 / 7)`; the
    paper's are even in its own clock. Its discriminator sees the two states as channels; here (`Pairs`) it is a copy of
    the base that is told of the noisier one.

    Args:
        latent: numbers of z, by default 64, or as many as a sample has: at a step the first of a draw of its size. 0 is
            none, and sampled by "ddpm". r1: weight of `|dD / dx_s|^2 / 2` at real pairs, lazy: every how many
            iterations it acts. features: blocks that the discriminator reads, by default the last. critic_lr: its rate,
            by default the student's.

    Raises:
        ValueError: a latent below 0 or of more numbers than a sample, a negative weight, `lazy` below 1, a network that
            takes no further inputs, an unknown block.
    """

    kind = "jump"

    def __init__(
        self, setting: Setting, latent: int | None = None, r1: float = 0.05, lazy: int = 8,
        features: Sequence[str] | None = None, critic_lr: float | None = None,
    ) -> None:  # fmt: skip
        numbers = math.prod(setting.shape)
        self.latent = min(numbers, LATENT) if latent is None else latent
        if not 0 <= self.latent <= numbers:
            raise ValueError(f"latent must be 0 to {numbers}, the numbers of a sample, got {latent}")
        if r1 < 0 or lazy < 1:
            raise ValueError(f"r1 must be at least 0 and lazy at least 1, got {r1:g} and {lazy}")
        if setting.own:
            raise ValueError("ddgan copies its student for a discriminator, which only networks can be")
        self.setting, self.penalty, self.lazy = setting, r1, lazy
        self.solver = "ddgan" if self.latent else "ddpm"
        process, steps = setting.process, setting.steps
        shares = torch.arange(steps, dtype=torch.float64) / steps
        self._times = at_shares(process, setting.start, shares)
        self._next = torch.cat([self._times[1:], torch.tensor([process.t_zero], dtype=torch.float64)])
        pairs = zip(self._times.tolist(), self._next.tolist(), strict=True)
        self._posterior = torch.tensor([posterior(process, a, b) for a, b in pairs], dtype=torch.float64)
        extras: Any = {"latent": self.latent} if self.latent else {}
        self.student = setting.student(**extras)
        self.of_critic, self.of_student = sides("non-saturating")
        one = setting.condition(1, torch.Generator().manual_seed(0))
        named = {name: value.to(setting.device) for name, value in one.items()}
        judge = setting.training(setting.base, None)
        self.judge = Pairs(judge, setting.shape, features, named, setting.data_std, setting.seed)
        self.players = {
            "discriminator": setting.player(self.judge, self._critic_loss, lr=critic_lr),
            "student": setting.player(self.student, self._loss, average=True),
        }
        for player in self.players.values():
            player.betas = BETAS

    def times(self) -> tuple[float, ...]:
        return tuple(self._times.tolist())

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        setting = self.setting
        x0, condition = setting.real(batch, generator)
        place = torch.randint(setting.steps, (batch,), generator=generator)
        dtype = torch.float64 if setting.dtype == torch.float64 else torch.float32
        return {
            "x0": x0,
            "condition": condition,
            "t": self._times[place],
            "s": self._next[place],
            "posterior": self._posterior[place],
            "eps": setting.noise(batch, generator, 2),
            # Of the critic's turn and of the student's.
            "z": torch.randn(batch, 2, max(self.latent, 1), generator=generator, dtype=dtype),
            "noise": setting.noise(batch, generator, 2),
            "penalised": setting.step % self.lazy == 0,
        }

    def states(self, drawn: Batch) -> tuple[Tensor, Tensor]:
        """Real states at s and, noised further, at t."""
        setting, s = self.setting, drawn["s"]
        x_s = setting.noised(drawn["x0"].to(setting.device), drawn["eps"][:, 0], s)
        return x_s, diffused(setting, x_s, s, drawn["t"], drawn["eps"][:, 1])

    def before(self, x_t: Tensor, drawn: Batch, turn: int) -> Tensor:
        """What the student draws at s before states at t, with its gradient where one is asked for."""
        latent = {"latent": drawn["z"][:, turn].to(x_t.dtype)} if self.latent else {}
        answer = self.setting.counted(self.student)(x_t, drawn["t"], **latent, **drawn["condition"])
        std, of_x, of_x0 = (expand(part, x_t) for part in drawn["posterior"].unbind(1))
        return of_x * x_t + of_x0 * answer.x0 + std * drawn["noise"][:, turn]

    def _critic_loss(self, drawn: Batch) -> Tensor:
        real, x_t = self.states(drawn)
        with torch.no_grad():
            made = self.before(x_t, drawn, 0)
        s, t, condition, count = drawn["s"], drawn["t"], drawn["condition"], self.setting.count
        count.evaluations += 2 * BACKWARD * len(x_t)
        loss = self.of_critic(*(self.judge(x, s, x_t, t, condition) for x in (real, made)))
        if not (self.penalty and drawn["penalised"]):
            return loss
        count.evaluations += (2 * BACKWARD - FORWARD) * len(x_t)  # its backward pass has one of its own
        slope = r1(lambda x, s, named: self.judge(x, s, x_t, t, named), real, s, condition)
        return loss + self.penalty / 2 * slope

    def _loss(self, drawn: Batch) -> Tensor:
        _, x_t = self.states(drawn)
        made = self.before(x_t, drawn, 1)
        self.setting.count.evaluations += BACKWARD * len(x_t)
        return self.of_student(self.judge(made, drawn["s"], x_t, drawn["t"], drawn["condition"]))
