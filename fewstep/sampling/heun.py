"""Euler's and Heun's methods on the probability-flow ODE in the process's own time, with EDM's churn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.sampling.common import ddim

_EDM = "Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)"
METHODS = (
    Method(
        "euler",
        paper=_EDM,
        arxiv="2206.00364",
        claim="order 1 in the process's own time",
        use="euler",
        facts={"order": 1},
    ),
    Method(
        "heun",
        paper=_EDM,
        arxiv="2206.00364",
        claim="order 2 at two evaluations per step; churn adds fresh noise",
        use="heun",
        facts={"order": 2},
    ),
)


def _churned(trace: Trace, process: Process, x: Value, t: float, gamma: float, s_noise: float) -> tuple[Value, float]:
    """Raise the noise-to-signal ratio r by 1 + gamma with fresh noise: `x / alpha` gains variance r'^2 - r^2."""
    ratio = process.sigma(t) / process.alpha(t)
    raised = min(process.time(-math.log(ratio * (1 + gamma))), process.t_max)
    alpha = process.alpha(raised)
    more = math.sqrt(max((process.sigma(raised) / alpha) ** 2 - ratio**2, 0.0))
    return x * (alpha / process.alpha(t)) + trace.noise() * (alpha * more * s_noise), raised


def euler(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """`x_b = x_a + (b - a) dx/dt`, `dx/dt = alpha' x0 + sigma' eps`; the step to sigma = 0 takes the predicted x0."""
    x = trace.start()
    for a, b in pairwise(times):
        prediction = trace.evaluate(x, a)
        x = ddim(process, x, a, b, prediction) if process.sigma(b) == 0 else x + prediction.velocity * (b - a)
    return x


def heun(
    trace: Trace,
    process: Process,
    times: Sequence[float],
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> Value:
    """EDM's Algorithm 1 (2 with churn): an Euler step, then the mean of both slopes; the step to sigma = 0 takes the
    predicted x0, which is Euler's step where sigma = t.

    `churn` is S_churn: each of the N steps with sigma/alpha in [churn_min, churn_max] first raises the noise level by
    the factor `1 + min(churn / N, sqrt(2) - 1)`, with fresh noise times `churn_noise`.
    """
    if churn < 0:
        raise ValueError(f"churn must not be negative, got {churn}")
    x = trace.start()
    gamma = min(churn / (len(times) - 1), math.sqrt(2) - 1)
    for a, b in pairwise(times):
        alpha = process.alpha(a)
        if gamma > 0 and alpha > 0 and churn_min <= process.sigma(a) / alpha <= churn_max:
            x, a = _churned(trace, process, x, a, gamma, churn_noise)
        prediction = trace.evaluate(x, a)
        if process.sigma(b) == 0:
            return ddim(process, x, a, b, prediction)
        slope = prediction.velocity
        predicted = x + slope * (b - a)
        x = x + (slope + trace.evaluate(predicted, b).velocity) * (0.5 * (b - a))
    return x
