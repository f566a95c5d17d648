"""DPM-Solver: single-step exponential Runge-Kutta methods on eps in log-SNR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import SymbolicPrediction, Trace, Value
from fewstep.sampling.common import ddim

_PAPER = "DPM-Solver: A Fast ODE Solver for Diffusion Model Sampling in Around 10 Steps (Lu et al., 2022)"
METHODS = (
    Method(
        "dpm-solver",
        paper=_PAPER,
        arxiv="2206.00927",
        claim="order p = 1, 2, 3 with p evaluations per step, stages at exact log-SNRs",
        use="dpm_solver",
        facts={"order": 0, "plus_p": True, "orders": (1, 2, 3), "any_order": True},
    ),
    Method(
        "dpm-fast",
        paper=_PAPER,
        arxiv="2206.00927",
        claim="one evaluation per step of the grid, in steps of order 3 and one or two last ones of lower order",
        use="dpm_fast",
        facts={"order": 2},
    ),
)


def dpm_solver(trace: Trace, process: Process, times: Sequence[float], order: int = 2) -> Value:
    """DPM-Solver-1, -2 (r1 = 1/2) and -3 (r1 = 1/3, r2 = 2/3): Algorithms 1 and 2 of the paper.

    Steps from alpha = 0 and to sigma = 0 have no finite length in log-SNR: they are first-order, one evaluation.
    Order 2 is k-diffusion's `dpm_2` as well (the middle of log sigma, on x / alpha).
    """
    if order not in (1, 2, 3):
        raise ValueError(f"dpm-solver has order 1, 2 or 3, got {order}")
    x = trace.start()
    for a, b in pairwise(times):
        x = _step(trace, process, x, a, b, order)
    return x


def dpm_fast(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """DPM-Solver-fast (appendix C): n evaluations on a grid of n steps, spent on n // 3 + 1 longer ones.

    All of these are of order 3 but the last: n = 3k makes the last two of orders 2 and 1, n = 3k + 1 the last of order
    1, n = 3k + 2 of order 2. On equal steps in log-SNR they are equal too, as in the paper; on others they cut the grid
    into equal parts, log-SNR a line between its times. Steps from alpha = 0 and to sigma = 0 stay as they are, with one
    evaluation each, and n counts the others.
    """
    x, inner = trace.start(), list(times)
    if process.alpha(inner[0]) == 0:
        x = _step(trace, process, x, inner[0], inner[1], 1)
        inner = inner[1:]
    clean = process.sigma(inner[-1]) == 0 and len(inner) > 1
    n = len(inner) - 1 - clean
    if n > 0:
        orders = [3] * (n // 3) + [n % 3] if n % 3 else [3] * (n // 3 - 1) + [2, 1]
        bounds = _stretched(process, inner[: n + 1], len(orders))
        for (a, b), order in zip(pairwise(bounds), orders, strict=True):
            x = _step(trace, process, x, a, b, order)
    return _step(trace, process, x, inner[-2], inner[-1], 1) if clean else x


def _stretched(process: Process, times: Sequence[float], parts: int) -> list[float]:
    """`parts + 1` times with the same ends, at equal parts of the grid's index, log-SNR linear in between."""
    n = len(times) - 1
    places = np.arange(1, parts) * n / parts
    log_snrs = np.interp(places, np.arange(n + 1), [process.log_snr(t) for t in times])
    return [times[0], *(process.time(float(value)) for value in log_snrs), times[-1]]


def _step(trace: Trace, process: Process, x: Value, a: float, b: float, order: int) -> Value:
    prediction = trace.evaluate(x, a)
    if order == 1 or process.alpha(a) == 0 or process.sigma(b) == 0:
        return ddim(process, x, a, b, prediction)
    make = _second if order == 2 else _third
    return make(trace, process, x, a, b, prediction)


def _second(trace: Trace, process: Process, x: Value, a: float, b: float, prediction: SymbolicPrediction) -> Value:
    h = process.log_snr(b) - process.log_snr(a)
    s = process.time(process.log_snr(a) + 0.5 * h)
    middle = trace.evaluate(ddim(process, x, a, s, prediction), s)
    push = process.sigma(b) * math.expm1(h)
    return x * (process.alpha(b) / process.alpha(a)) - middle.eps * push


def _third(trace: Trace, process: Process, x: Value, a: float, b: float, prediction: SymbolicPrediction) -> Value:
    r1, r2 = 1 / 3, 2 / 3
    h = process.log_snr(b) - process.log_snr(a)
    s1, s2 = (process.time(process.log_snr(a) + r * h) for r in (r1, r2))
    eps = prediction.eps
    d1 = trace.evaluate(ddim(process, x, a, s1, prediction), s1).eps - eps
    curve = math.expm1(r2 * h) / (r2 * h) - 1
    u2 = (
        x * (process.alpha(s2) / process.alpha(a))
        - eps * (process.sigma(s2) * math.expm1(r2 * h))
        - d1 * (process.sigma(s2) * r2 / r1 * curve)
    )
    d2 = trace.evaluate(u2, s2).eps - eps
    return (
        x * (process.alpha(b) / process.alpha(a))
        - eps * (process.sigma(b) * math.expm1(h))
        - d2 * (process.sigma(b) / r2 * (math.expm1(h) / h - 1))
    )
