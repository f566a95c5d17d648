"""The probability-flow ODE by the angle between data and noise, where its linear part is exact at both ends.

With `norm = sqrt(alpha^2 s^2 + sigma^2)`, s the standard deviation of the data, and `tan(theta) = sigma / (alpha s)`,
the state is `x = norm y` with `y = cos(theta) x0 / s + sin(theta) eps`, and

    dy / d(theta) = cos(theta) eps - sin(theta) x0 / s

with the predicted x0 and eps. For data N(0, s^2) the right side is zero: the growth of the state near the noise, and
its decay towards the data, are in `norm`, exactly. Theta runs from pi/2 (alpha = 0) to 0 (sigma = 0), and the right
side is finite at both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.process import Process

# Explicit Runge-Kutta methods: nodes, rows below the diagonal, weights. Their orders are 1, 2 and 4.
Tableau = tuple[tuple[float, ...], tuple[tuple[float, ...], ...], tuple[float, ...]]
RUNGE_KUTTA: dict[str, Tableau] = {
    "euler": ((0.0,), ((),), (1.0,)),
    "midpoint": ((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "rk4": ((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
State = tuple[Tensor, ...]
Field = Callable[[float, State], State]


def tableau(name: str) -> Tableau:
    """The Runge-Kutta method of a name; `ValueError` with the close names where there is none."""
    if name not in RUNGE_KUTTA:
        raise suggest("Runge-Kutta method", name, RUNGE_KUTTA)
    return RUNGE_KUTTA[name]


def increment(method: Tableau, field: Field, a: float, b: float, state: State) -> State:
    """What an explicit Runge-Kutta step from a to b adds to each part of the state."""
    nodes, rows, weights = method
    h = b - a
    slopes: list[State] = []
    for node, row in zip(nodes, rows, strict=True):
        slopes.append(field(a + node * h, _added(state, h, row, slopes)))
    zero = tuple(torch.zeros_like(part) for part in state)
    return _added(zero, h, weights, slopes)


def _added(state: State, h: float, weights: Sequence[float], slopes: Sequence[State]) -> State:
    parts = []
    for i, part in enumerate(state):
        for weight, slope in zip(weights, slopes, strict=True):
            if weight != 0:
                part = part + slope[i] * (h * weight)
        parts.append(part)
    return tuple(parts)


@dataclass(frozen=True)
class Angle:
    """The frame of a process for data of standard deviation `data_std`; times and angles are floats."""

    process: Process
    data_std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.data_std < math.inf:
            raise ValueError(f"data_std must be positive, got {self.data_std}")

    def norm(self, t: float) -> float:
        return math.hypot(self.process.sigma(t), self.process.alpha(t) * self.data_std)

    def angle(self, t: float) -> float:
        return math.atan2(self.process.sigma(t), self.process.alpha(t) * self.data_std)

    def time(self, angle: float) -> float:
        """The time that has this angle, at least `t_min`."""
        if angle > math.pi / 2 - 1e-12:
            return self.process.t_max
        return max(self.process.time(-math.log(math.tan(angle) * self.data_std)), self.process.t_min)

    def slope(self, model: Denoiser, y: Tensor, angle: float, condition: Mapping[str, Tensor]) -> Tensor:
        """dy / d(angle) `(B, *shape)`: one evaluation."""
        t = self.time(angle)
        x = y * self.norm(t)
        prediction = model(x, torch.tensor(t, dtype=y.dtype, device=y.device), **condition)
        if prediction.value.shape != x.shape:
            raise ValueError(f"the network returned shape {tuple(prediction.value.shape)} for {tuple(x.shape)}")
        if prediction.kind in ("eps", "score") and self.process.alpha(t) == 0:
            raise ValueError(
                f"a prediction of {prediction.kind!r} says nothing about x0 at t = {t:g}, where alpha = 0: it must"
                " predict v, velocity or x0 to start from pure noise"
            )
        return prediction.eps * math.cos(angle) - prediction.x0 * (math.sin(angle) / self.data_std)


def frame_of(model: Denoiser, data_std: float | None) -> Angle:
    """The frame of a model: its own `data_std` where it has one and none is given, else 1."""
    own = model.facts.data_std
    return Angle(model.process, float(data_std if data_std is not None else own if own is not None else 1.0))
