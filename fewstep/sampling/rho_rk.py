"""Runge-Kutta methods in sigma/alpha on x/alpha, where the ODE is `d(x/alpha) = eps d(sigma/alpha)`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.sampling.common import ddim

METHODS = (
    Method(
        "rho-rk",
        paper="Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2023)",
        arxiv="2204.13902",
        claim="order p = 2, 3, 4 at p evaluations per step: Heun's, Kutta's and the classical method (rhoRK-DEIS)",
        use="rho_rk",
        facts={"order": 0, "plus_p": True, "orders": (2, 3, 4), "any_order": True},
    ),
)

# Order: (rows of the stages after the first, weights). A row's sum is the stage's place in the step.
TABLEAUS: dict[int, tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    2: (((1.0,),), (1 / 2, 1 / 2)),
    3: (((1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6)),
    4: (((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


def rho_rk(trace: Trace, process: Process, times: Sequence[float], order: int = 2) -> Value:
    """rhoRK-DEIS: Heun's method (order 2, EDM's sampler where alpha = 1), Kutta's third, the classical fourth.

    Steps from alpha = 0, where sigma/alpha is infinite, and to sigma = 0, where eps carries no information, are
    first-order, with one evaluation.
    """
    if order not in TABLEAUS:
        raise ValueError(f"rho-rk has order 2, 3 or 4, got {order}")
    rows, weights = TABLEAUS[order]
    x = trace.start()
    for a, b in pairwise(times):
        prediction = trace.evaluate(x, a)
        if process.alpha(a) == 0 or process.sigma(b) == 0:
            x = ddim(process, x, a, b, prediction)
            continue
        low, high = (process.sigma(t) / process.alpha(t) for t in (a, b))
        start, h, slopes = x / process.alpha(a), high - low, [prediction.eps]
        for row in rows:
            place = sum(row)
            s = b if place == 1 else process.time(-math.log(low + place * h))
            stage = (start + _combined(row, slopes) * h) * process.alpha(s)
            slopes.append(trace.evaluate(stage, s).eps)
        x = (start + _combined(weights, slopes) * h) * process.alpha(b)
    return x


def _combined(weights: Sequence[float], slopes: Sequence[Value]) -> Value:
    return sum((slope * w for w, slope in zip(weights, slopes, strict=True) if w != 0), start=Value({}))
