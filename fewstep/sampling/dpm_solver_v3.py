"""DPM-Solver-v3: a multistep predictor-corrector in the model's own coordinates, from its statistics."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.core.lagrange import lagrange
from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.sampling.common import Frame, ddim, gauss, step_weights
from fewstep.sampling.statistics import Statistics, load_statistics

METHODS = (
    Method(
        "dpm-solver-v3",
        paper="DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics (Zheng et al., 2023)",
        arxiv="2310.13268",
        claim="order p + 1 at one evaluation per step, linear part and drift taken from the model's statistics",
        use="dpm_solver_v3",
        facts={"live": True, "order": 1, "plus_p": True, "orders": (1, 2, 3), "any_order": True},
    ),
)

_PANEL = 0.25  # longest stretch of log-SNR over which the statistics are taken for smooth
_NODES = 8
_KEPT = 256  # steps whose coefficients are kept at most


@functools.cache
def _spectral() -> tuple[np.ndarray, Tensor, Tensor]:
    """Gauss nodes on [0, 1], the integrals of their Lagrange basis from 0 to each node, and to 1."""
    nodes, weights = gauss(_NODES)
    to_node = np.stack([c * (np.stack(lagrange(list(nodes), c * nodes)) @ weights) for c in nodes])
    return nodes, torch.from_numpy(to_node), torch.from_numpy(weights)


class _Path:
    """Integrals along log-SNR from `start`, per coordinate: L of l, S of s, and B of `e^-S b`."""

    def __init__(self, statistics: Statistics, start: float):
        self.statistics, self.start = statistics, start

    def to(self, end: float, nodes: Sequence[float] = ()) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Tensor]:
        """L, S, B at `end`, and the integrals of `e^(L + S)` times each Lagrange basis of `nodes`, and times B."""
        at, to_node, weights = _spectral()
        panels = max(1, int(np.ceil(abs(end - self.start) / _PANEL)))
        width = (end - self.start) / panels
        size = self.statistics.shape
        line, rate, drift = (torch.zeros(size, dtype=torch.float64) for _ in range(3))
        moments = [torch.zeros(size, dtype=torch.float64) for _ in nodes]
        pushed = torch.zeros(size, dtype=torch.float64)
        for i in range(panels):
            log_snr = self.start + width * (i + at)
            l, s, b = self.statistics.at(log_snr)  # noqa: E741
            inner_l, inner_s = (width * torch.tensordot(to_node, v, 1) for v in (l, s))
            push = torch.exp(-(rate + inner_s)) * b
            inner_b = drift + width * torch.tensordot(to_node, push, 1)
            if nodes:
                grown = width * torch.exp(line + inner_l + rate + inner_s)
                basis = torch.from_numpy(np.stack(lagrange(list(nodes), log_snr))) * weights
                moments = [m + torch.tensordot(row, grown, 1) for m, row in zip(moments, basis, strict=True)]
                pushed = pushed + torch.tensordot(weights, grown * inner_b, 1)
            line, rate = (v + width * torch.tensordot(weights, w, 1) for v, w in ((line, l), (rate, s)))
            drift = drift + width * torch.tensordot(weights, push, 1)
        return line, rate, drift, moments, pushed


Step = tuple[Tensor, list[Tensor], Tensor]  # x_b = A x_a + sum_j w_j f_j + c


def step_coefficients(
    process: Process, statistics: Statistics | None, a: float, b: float, nodes: Sequence[float]
) -> Step:
    """A, w, c per coordinate of the step from a to b, through f at the times `nodes` (eqs. 8 and 9).

    In `g = e^-S f - B` the fitted drift of f is gone, and g is taken for the polynomial in log-SNR through the nodes:
    `x_b / alpha_b = e^-L(b) (x_a / alpha_a - integral of e^(L + S) (g + B))`.
    """
    if statistics is None:  # f is -x0
        scale, on_x0 = step_weights(process, Frame("x0", "log_snr"), a, b, nodes)
        shrink, *weights = (torch.tensor(value, dtype=torch.float64) for value in (scale, *(-w for w in on_x0)))
        return shrink, weights, shrink * 0
    start, places = process.log_snr(a), [process.log_snr(t) for t in nodes]
    path = _Path(statistics, start)
    line, _, _, moments, pushed = path.to(process.log_snr(b), places)
    shrink = process.alpha(b) * torch.exp(-line)
    weights, constant = [], -pushed
    for place, moment in zip(places, moments, strict=True):
        _, rate, drift, _, _ = path.to(place)
        weights.append(-shrink * moment * torch.exp(-rate))
        constant = constant + moment * drift
    return shrink / process.alpha(a), weights, shrink * constant


def dpm_solver_v3(
    live: Live,
    process: Process,
    times: Sequence[float],
    order: int = 2,
    statistics: Statistics | str | os.PathLike[str] | None = None,
    corrector: bool = True,
) -> Tensor:
    """DPM-Solver-v3 (Algorithm 1): a predictor through the last `order` answers; the next answer corrects its step.

    For order 3 the start is improved as in `unipc`, for one evaluation more. Steps from alpha = 0 and to sigma = 0 are
    first-order.

    Args:
        order: 1, 2 or 3, that of the predictor; the corrector's is one higher.
        statistics: of this model (`estimate_statistics(model)`), or their file. None stands for l = 1, s = b = 0: the
            exponential Adams predictor-corrector on x0.
        corrector: without it the solver has order p.

    Raises:
        ValueError: another order; statistics of another process or shape.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"dpm-solver-v3 has order 1, 2 or 3, got {order}")
    x = live.start()
    if live.counting:
        statistics = None
    if statistics is not None:
        if not isinstance(statistics, Statistics):
            statistics = load_statistics(statistics)
        statistics.check(process, tuple(x.shape[1:]))
    coefficients = _Coefficients(process, statistics, x)
    n = len(times) - 1
    order = min(order, n)
    goal = order + 1 if corrector else order
    warm_up = goal - 2 if goal > 3 and process.alpha(times[0]) > 0 else 0
    first = previous = x
    points: list[tuple[float, Tensor]] = []  # times and f
    for k, (a, b) in enumerate(pairwise(times)):
        prediction = live.evaluate(x, a)
        if process.alpha(a) == 0:
            x = ddim(process, x, a, b, prediction)  # type: ignore[arg-type, assignment]
            continue
        points.append((a, coefficients.f(a, x, prediction)))
        if 1 <= k <= warm_up:
            if k < warm_up:
                for j, t in enumerate(times[1 : k + 1], start=1):
                    moved = coefficients.step(first, times[0], t, points)
                    points[j] = (t, coefficients.f(t, moved, live.evaluate(moved, t)))
            x = coefficients.step(first, times[0], a, points)
        elif corrector and len(points) > 1:
            x = coefficients.step(previous, times[k - 1], a, points[-order - 1 :])
        previous = x
        if process.sigma(b) == 0:
            x = ddim(process, x, a, b, prediction)  # type: ignore[arg-type, assignment]
        else:
            x = coefficients.step(x, a, b, points[-order:])
    return x


class _Coefficients:
    """The steps' coefficients in the state's dtype and on its device; with statistics they are worked out once."""

    def __init__(self, process: Process, statistics: Statistics | None, x: Tensor):
        self.process, self.statistics, self.like = process, statistics, x
        self.kept: dict[Any, Any] = {} if statistics is None else statistics.coefficients

    def _made(self, key: tuple[Any, ...], make: Callable[[], list[Tensor]]) -> list[Tensor]:
        key = (*key, self.like.dtype, str(self.like.device))
        if key not in self.kept:
            if len(self.kept) >= _KEPT:
                self.kept.clear()
            self.kept[key] = [value.to(self.like) for value in make()]
        return self.kept[key]

    def f(self, t: float, x: Tensor, prediction: Prediction) -> Tensor:
        """`(sigma eps - l x) / alpha = (1 - l) x / alpha - x0`."""
        if self.statistics is None:
            return -prediction.x0
        statistics, log_snr = self.statistics, self.process.log_snr(t)

        def rest() -> list[Tensor]:
            return [(1 - statistics.at(np.array([log_snr]))[0][0]) / self.process.alpha(t)]

        return self._made((t,), rest)[0] * x - prediction.x0

    def step(self, x: Tensor, a: float, b: float, points: Sequence[tuple[float, Tensor]]) -> Tensor:
        nodes = tuple(t for t, _ in points)

        def make() -> list[Tensor]:
            shrink, weights, constant = step_coefficients(self.process, self.statistics, a, b, nodes)
            return [shrink, constant, *weights]

        shrink, constant, *weights = self._made((a, b, nodes), make)
        out = shrink * x + constant
        for weight, (_, value) in zip(weights, points, strict=True):
            out = torch.addcmul(out, weight, value)
        return out
