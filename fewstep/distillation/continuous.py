"""Consistency in continuous time: the student's answer stands still along the path, by its derivative there."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.prediction import expand, scales
from fewstep.distillation.levels import log_normal
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.pairs import draw_states, drawn_from, noisy
from fewstep.distillation.tangent import MODES, tangent
from fewstep.distillation.teacher import BACKWARD, FORWARD

METHODS = (
    Method(
        "scm",
        paper="Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models (Lu and Song, 2025)",
        arxiv="2410.11081",
        claim="no grid and no error of its steps: the derivative along the path itself goes to zero",
        use="Continuous",
        facts={"student": "jump", "data": False, "pairing": True, "players": ("student", "weight"), "steps": "any"},
    ),
)

MEAN, DEVIATION = -1.0, 1.4  # of log(sigma / (alpha data_std)) (their appendix G)
SMALL = 0.1  # beside the tangent's norm
LIMITS = ("normalised", "clipped")


class Weight(nn.Module):
    """`w(t)`, the logarithm of an adaptive weight, of the level `log(sigma / alpha)`: (B,) to (B,), 0 at first."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.linspace(math.log(0.25), math.log(4.0), width // 2).exp())
        self.frequencies: Tensor
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, level: Tensor) -> Tensor:
        phase = level.to(self.frequencies)[:, None] * self.frequencies
        return self.last(F.silu(self.first(torch.cat([phase.cos(), phase.sin()], 1))))[:, 0]  # type: ignore[no-any-return]


class Continuous(Distiller):
    """sCM on the TrigFlow clock of any process, `tan a = sigma / (alpha data_std)`: sCD with the teacher's paths, sCT
    (`training`) along those of data and noise (Lu and Song, Algorithm 1).

    With x* the teacher's x0 (or the datum), `f = cos(a) y - sin(a) data_std F` and y the state at unit scale, their
    tangent `g = -cos^2 (data_std F - dy/da) - r cos sin (y + data_std dF/da)` is in terms of f

        g = cos(a) ((1 - r) cot(a) (f - x*) + r df/da),

    so it needs nothing of the network but its x0, whatever it predicts. `df/da` is taken as the derivative in
    `log(sigma / alpha)` along the path over `sin(a) cos(a)`, which ends at pure noise and at the clean end alike. The
    loss is `e^w(t) mean (F - F- - g)^2 - w(t)`, g first normalised to `g / (|g| + 0.1)`, |g| the root of the mean
    square. The paper's drawn angle is cut to the student's start.

    Args:
        training: sCT, along data and noise; no teacher. warm: iterations in which r rises from 0 to 1, by default a
            quarter of the run. limit: of g, "normalised" or "clipped" (to -1 and 1). tangent: the derivative, by
            "jvp" or "difference" (`fewstep.distillation.tangent`).

    Raises:
        ValueError: an unknown name, a warm-up below 0, training without data.
    """

    kind = "jump"

    def __init__(
        self, setting: Setting, training: bool = False, warm: int | None = None, limit: str = "normalised",
        tangent: str = "jvp",
    ) -> None:  # fmt: skip
        if limit not in LIMITS:
            raise suggest("limit", limit, LIMITS)
        if tangent not in MODES:
            raise suggest("tangent", tangent, MODES)
        if warm is not None and warm < 0:
            raise ValueError(f"warm must be at least 0 iterations, got {warm}")
        self.states = drawn_from(setting, "data" if training else None)
        self.setting, self.training, self.limit, self.mode = setting, training, limit, tangent
        self.warm = warm
        self.student = setting.student()
        self.f = setting.counted(self.student)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            self.adaptive = Weight().to(setting.device, setting.dtype)
        self._error: Tensor | None = None  # of the student's turn, for that of w(t)
        self.players = {"student": setting.player(self.student, self.loss, average=True)}
        self.players["weight"] = setting.player(self.adaptive, self.weight_loss)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        setting = self.setting
        drawn = draw_states(setting, self.states, batch, generator)
        normal = torch.randn(batch, generator=generator, dtype=torch.float64)
        mean = MEAN + math.log(setting.data_std)
        return drawn | {"t": log_normal(setting.process, normal, mean, DEVIATION, setting.start)}

    def warmth(self) -> float:
        """r in this iteration."""
        warm = self.setting.iterations // 4 if self.warm is None else self.warm
        return min(1.0, (self.setting.step + 1) / warm) if warm else 1.0

    def angle(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """cos a and sin a at times (B,), shaped as states."""
        alpha, sigma = self.setting.process.alpha(t) * self.setting.data_std, self.setting.process.sigma(t)
        norm = (alpha**2 + sigma**2).sqrt()
        return expand(alpha / norm, x), expand(sigma / norm, x)

    def end(self, x: Tensor, drawn: Batch) -> Tensor:
        """x*, which the path at x points to: the datum, or the teacher's x0."""
        if self.training:
            return drawn["x0"]  # type: ignore[no-any-return]
        with torch.no_grad():
            return self.setting.teacher(x, drawn["t"], **drawn["condition"]).x0

    def slope(self, x: Tensor, end: Tensor, drawn: Batch) -> tuple[Tensor, Tensor]:
        """f, with its gradient, and its derivative in `log(sigma / alpha)` along the path to `end`, without one."""
        t = drawn["t"]
        alpha, sigma, dalpha, dsigma = scales(self.setting.process, t)
        turn = alpha / (dsigma * alpha - sigma * dalpha)  # dt = sigma turn dlog(sigma / alpha)
        dx = expand(turn * dsigma, x) * x - expand(alpha, x) * end

        def f(x: Tensor, t: Tensor) -> Tensor:
            return self.student(x, t, **drawn["condition"]).x0

        value, derivative = tangent(f, (x, t), (dx, sigma * turn), self.mode)
        self.setting.count.evaluations += len(x) * (BACKWARD + FORWARD * (1 if self.mode == "jvp" else 2))
        return value, derivative

    def tangent(self, f: Tensor, slope: Tensor, end: Tensor, t: Tensor) -> Tensor:
        """g, neither normalised nor clipped."""
        cos, sin = self.angle(t, f)
        r = self.warmth()
        return ((1 - r) * cos.square() * (f - end) + r * slope) / sin

    def error(self, drawn: Batch) -> Tensor:
        """The mean square (B,) of `F - F- - g`, whose gradient moves F along g."""
        t = drawn["t"]
        x = noisy(self.setting, drawn)
        end = self.end(x, drawn)
        f, slope = self.slope(x, end, drawn)
        g = self.tangent(f.detach(), slope, end, t)
        if self.limit == "clipped":
            g = g.clamp(-1, 1)
        else:
            g = g / (expand(g.flatten(1).square().mean(1).sqrt(), g) + SMALL)
        sin = self.angle(t, x)[1]
        moved = (f.detach() - f) / (sin * self.setting.data_std)  # F - F-, which is zero and has F's gradient
        return (moved - g).square().flatten(1).mean(1)

    def loss(self, drawn: Batch) -> Tensor:
        error = self.error(drawn)
        self._error = error.detach()
        with torch.no_grad():
            weight = self.adaptive(-self.setting.process.log_snr(drawn["t"]).clamp(-20, 20))
        return weight.exp() * error

    def weight_loss(self, drawn: Batch) -> Tensor:
        """`e^w(t) error - w(t)` (B,), least where `e^-w` is the error expected at t."""
        error = self.error(drawn).detach() if self._error is None else self._error
        self._error = None
        weight = self.adaptive(-self.setting.process.log_snr(drawn["t"]).clamp(-20, 20))
        return weight.exp() * error.to(weight.dtype) - weight

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._error = None
