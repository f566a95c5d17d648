"""DPM-Solver: single-step exponential Runge-Kutta methods on eps in log-SNR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import SymbolicPrediction, Trace, Value
from fewstep.sampling.common import ddim

METHODS = (
    Method(
        "dpm-solver",
        paper="DPM-Solver: A Fast ODE Solver for Diffusion Model Sampling in Around 10 Steps (Lu et al., 2022)",
        arxiv="2206.00927",
        claim="order p = 1, 2, 3 with p evaluations a step, stages at exact log-SNRs",
        use="dpm_solver",
        facts={"order": "p", "orders": (1, 2, 3), "any_order": True},
    ),
)


def dpm_solver(trace: Trace, process: Process, times: Sequence[float], order: int = 2) -> Value:
    """DPM-Solver-1, -2 (r1 = 1/2) and -3 (r1 = 1/3, r2 = 2/3): Algorithms 1 and 2 of the paper.

    Steps from alpha = 0 and to sigma = 0 have no finite length in log-SNR: they are first-order, one evaluation.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"dpm-solver has order 1, 2 or 3, got {order}")
    x = trace.start()
    for a, b in pairwise(times):
        prediction = trace.evaluate(x, a)
        if order == 1 or process.alpha(a) == 0 or process.sigma(b) == 0:
            x = ddim(process, x, a, b, prediction)
        elif order == 2:
            x = _second(trace, process, x, a, b, prediction)
        else:
            x = _third(trace, process, x, a, b, prediction)
    return x


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
