"""Guidance in one pass: a student that is told the scale and answers what its teacher does in two evaluations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import Method
from fewstep.core.prediction import conversion, expand
from fewstep.core.prediction import scales as scales_at
from fewstep.distillation.distances import squared
from fewstep.distillation.levels import at_shares
from fewstep.distillation.method import Batch, Distiller, Setting
from fewstep.distillation.pairs import draw_states, drawn_from, noisy
from fewstep.distillation.scales import by_scale, drawn_scales, put_inside, scale_range
from fewstep.guidance.guided import SCALE

METHODS = (
    Method(
        "guided",
        paper="On Distillation of Guided Diffusion Models (Meng et al., 2023)",
        arxiv="2210.03142",
        claim="one evaluation at any scale of guidance answers what its teacher answers in two",
        use="OnePass",
        facts={
            "student": "denoiser",
            "data": True,
            "pairing": True,
            "players": ("student",),
            "steps": "any",
            "usual_steps": 8,
            "start": 1000.0,
        },
    ),
)


def own_weight(base: Denoiser, t: Tensor) -> Tensor:
    """Squared error of a network's own output per squared error of its x0, at times t (B,), float64: the weight by
    which an error of x0 counts as it did when the network was trained."""
    process = base.process
    if getattr(base, "precondition", "none") == "edm":
        alpha, sigma, std = process.alpha(t), process.sigma(t), float(base.data_std)  # type: ignore[arg-type]
        return (sigma**2 + (alpha * std) ** 2) / (sigma * std) ** 2
    of_x0: Tensor = conversion("x0", getattr(base, "predicts", "x0"), *scales_at(process, t))[1]
    return of_x0.square()


class OnePass(Distiller):
    """`w(t) |f(x_t, t, s) - (D(x_t, t, empty) + s (D(x_t, t, c) - D(x_t, t, empty)))|^2` (Meng et al., eq. 3), with the
    scale s of each sample even in a range, which the student is told as its condition `guidance`.

    s is the house's scale, 1 for no guidance, the paper's w is `s - 1`. The states are noised data, their times even in
    `(sigma / alpha)^(1 / 7)` from the start down, and w(t) is what the network's own training has: the error is that of
    its output, so for a network that predicts v this is the paper's `snr + 1`. The student is a diffusion model, for
    any solver and any number of steps, so it begins where its teacher does. It is checked at the middle of the range.

    Args:
        scales: the range, or one scale, which the student is then not told. states: "data", or "teacher" for those that
            its paths from pure noise pass, which need no data.

    Raises:
        ValueError: a scale below 0 or a range that falls, a teacher without a label or caption or one that is guided
            already, no real samples, other states.
    """

    kind = "denoiser"

    def __init__(self, setting: Setting, scales: float | Sequence[float] = (1.0, 4.0), states: str = "data") -> None:
        self.states = drawn_from(setting, states)
        self.scales = scale_range("scales", scales)
        low, high = self.scales
        self.goal = by_scale(setting.teacher, (low + high) / 2)
        self.scale_inside = self.scales if low < high else put_inside(self.scales)
        self.setting = setting
        self.student = setting.student(scales=self.scales) if low < high else setting.student()
        self.players = {"student": setting.player(self.student, self._loss, average=True)}

    def judged(self, teacher: Denoiser) -> Denoiser:
        return by_scale(teacher, sum(self.scales) / 2)

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        setting = self.setting
        if self.states == "teacher":
            drawn = draw_states(setting, self.states, batch, generator)
        else:
            x0, condition = setting.real(batch, generator)
            drawn = {"x0": x0, "condition": condition}
        t = at_shares(setting.process, setting.start, setting.uniform(batch, generator))
        scale = drawn_scales(self.scales, setting.uniform(batch, generator)).float()
        if self.states == "data":
            drawn["eps"] = setting.noise(batch, generator)
        return drawn | {"t": t, "scale": scale}

    def _loss(self, drawn: Batch) -> Tensor:
        return self.loss(noisy(self.setting, drawn), drawn["t"], drawn["scale"], drawn["condition"])

    def told(self, scale: Tensor) -> dict[str, Tensor]:
        """The condition by which the student knows the scales (B,)."""
        return {SCALE: scale} if isinstance(self.scale_inside, tuple) else {}

    def loss(self, x: Tensor, t: Tensor, scale: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The weighted squared errors (B,) of the student's x0 at states x (B, *shape), times and scales (B,)."""
        with torch.no_grad():
            goal = self.goal(x, t, **condition, **{SCALE: scale}).x0
        return self.error(x, t, condition | self.told(scale), goal)

    def error(self, x: Tensor, t: Tensor, told: dict[str, Tensor], goal: Tensor) -> Tensor:
        """The weighted squared errors (B,) of the student's x0, told these conditions, from others (B, *shape)."""
        made = self.setting.counted(self.student)(x, t, **told).x0
        size = expand(own_weight(self.setting.base, t).sqrt(), made)
        return squared(size * made, size * goal)
