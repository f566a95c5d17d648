"""BOOT: a student of one evaluation without any data, which learns along time from its own earlier signal.

With the start's pure noise z, the student is a map from there: `g(s) = f(sigma_T z, T, to=s).x0`. Its state at s is
`x_s = J(sigma_T z, T, s; g)`, and its *signal* `y_s = (x_s - sigma_s z) / alpha_s`, the state without the noise that
it began with. As `J(sigma_T z, T, s; g) = sigma_s z + (alpha_s - alpha_T sigma_s / sigma_T) g`, the two are
proportional:

    y_s = (1 - r_Ts) g(s),    r_ts = exp(lambda_t - lambda_s),    lambda = log(alpha / sigma).

At the clean end, and everywhere if alpha_T = 0 as in the paper, r_Ts is 0 and y is g. DDIM's step in the signal is
`y_s = (1 - r_ts) D(alpha_t y_t + sigma_t z, t) + r_ts y_t`, whose limit is `dy / d log(sigma / alpha) = y - D`. Where
alpha_T is not 0, y_T is 0 (x_T holds nothing but noise), and the paper's boundary `y_T = D(sigma_T z, T)` is the same
condition on g: `g(T) = lim y_s / (1 - r_Ts) = D(sigma_T z, T)`. So the boundary is held on g in both cases, and the
student is a map in the sense of all others, exact at its limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.distillation.distances import squared
from fewstep.distillation.levels import at_shares
from fewstep.distillation.method import Batch, Distiller, Setting

METHODS = (
    Method(
        "boot",
        paper="BOOT: Data-free Distillation of Denoising Diffusion Models with Bootstrapping (Gu et al., 2023)",
        arxiv="2306.05544",
        claim="without data or stored pairs, one evaluation from noise ends nearer than a DDIM step",
        use="Boot",
        facts={"student": "map", "data": False, "pairing": True, "players": ("student",), "steps": 1},
    ),
)


class Boot(Distiller):
    """`|g(s) - target|^2 + boundary |g(T) - D(sigma_T z, T)|^2` (Gu et al., eqs. 9 and 10), the target the g(s) of

        y_s = (1 - r) D(alpha_t y_t + sigma_t z, t) + r y_t,    r = exp(lambda_t - lambda_s),

    from the student's own signal y_t at an earlier time, without gradient. Errors are those of g, in which the paper's
    are for alpha_T = 0; it divides the first by the square of the step, which here is of about equal length for all
    times. The paper's times are those of the schedule; here t and s are `1 / levels` apart on a way that is even in
    `(sigma / alpha)^(1 / 7)`, t is drawn everywhere on it, and the last stretch ends at the clean end.

    The student goes from `start` alone, to any time: its plan is one step.

    Args:
        levels: stretches of the way. boundary: weight of the second loss.

    Raises:
        ValueError: more than one step, levels below 1, a weight below 0.
    """

    kind = "map"

    def __init__(self, setting: Setting, levels: int = 32, boundary: float = 1.0) -> None:
        if setting.steps != 1:
            raise ValueError(f"the student of boot takes one step, not {setting.steps}")
        if levels < 1 or boundary < 0:
            raise ValueError(f"levels must be at least 1 and boundary at least 0, got {levels} and {boundary}")
        self.setting, self.levels, self.boundary = setting, levels, boundary
        self.student = setting.student(target=1)
        self.players = {"student": setting.player(self.student, self._loss, average=True)}

    def times(self) -> tuple[float, ...]:
        return (self.setting.start,)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        setting = self.setting
        shares = setting.uniform(batch, generator)
        after = shares + 1 / self.levels
        s = at_shares(setting.process, setting.start, after)
        return {
            "z": setting.noise(batch, generator),
            "t": at_shares(setting.process, setting.start, shares),
            "s": torch.where(after < 1, s, setting.process.t_zero),
            "condition": setting.condition(batch, generator),
        }

    def _loss(self, drawn: Batch) -> Tensor:
        z, condition = drawn["z"], drawn["condition"]
        loss = self.loss(z, drawn["t"], drawn["s"], condition)
        return loss + self.boundary * self.edge(z, condition) if self.boundary else loss

    def g(self, z: Tensor, s: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """The student's answers (B, *shape) from noises z at `start` to times s (B,)."""
        start = self.setting.times(self.setting.start, len(z))
        return self.setting.counted(self.student)(self.setting.begin(z), start, to=s, **condition).x0

    def _ratio(self, t: Tensor, s: Tensor) -> Tensor:
        """`exp(lambda_t - lambda_s)` (B,): 0 where s is clean, or t so noisy that alpha_t is 0."""
        alpha, sigma = self.setting.process.alpha, self.setting.process.sigma
        return torch.where(alpha(t) > 0, alpha(t) / alpha(s).clamp_min(1e-300), 0.0) * sigma(s) / sigma(t)

    def signal(self, z: Tensor, s: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """`y_s = (x_s - sigma_s z) / alpha_s` (B, *shape) of the student's states at s."""
        start = torch.full_like(s, self.setting.start)
        return expand(1 - self._ratio(start, s), z) * self.g(z, s, condition)

    @torch.no_grad()
    def target(self, z: Tensor, t: Tensor, s: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """The g (B, *shape) at s after a DDIM step of the teacher from the student's state at t."""
        process = self.setting.process
        y = self.signal(z, t, condition)
        x = expand(process.alpha(t), z) * y + expand(process.sigma(t), z) * z
        r = expand(self._ratio(t, s), z)
        after = (1 - r) * self.setting.teacher(x, t, **condition).x0 + r * y
        return after / expand(1 - self._ratio(torch.full_like(s, self.setting.start), s), z)

    def loss(self, z: Tensor, t: Tensor, s: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """The squared error (B,) of g(s), t before s."""
        return squared(self.g(z, s, condition), self.target(z, t, s, condition))

    def edge(self, z: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """The squared error (B,) of g at the start itself."""
        start = self.setting.times(self.setting.start, len(z))
        with torch.no_grad():
            goal = self.setting.teacher(self.setting.begin(z), start, **condition).x0
        return squared(self.g(z, start, condition), goal)
