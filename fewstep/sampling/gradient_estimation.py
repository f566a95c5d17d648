"""Gradient estimation: sampling as gradient descent on the distance to the data, its gradient from two predictions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.sampling.common import ddim

METHODS = (
    Method(
        "gradient-estimation",
        paper="Interpreting and Improving Diffusion Models from an Optimization Perspective (Permenter & Yuan, 2024)",
        arxiv="2306.04848",
        claim="order 1 at one evaluation per step, eps extrapolated from the last two; gamma = 1 is ddim",
        use="gradient_estimation",
        facts={"order": 1},
    ),
)


def gradient_estimation(trace: Trace, process: Process, times: Sequence[float], gamma: float = 2.0) -> Value:
    """`x/alpha += (mu_b - mu_a) (gamma eps + (1 - gamma) eps_last)`, mu = sigma/alpha (Permenter & Yuan, Algorithm 2).

    Where eps points from the data to x, mu eps is the gradient of half the squared distance to the data and each step a
    descent; the paper takes the combination of the last two as the better estimate of that direction, at gamma = 2.
    (Equal steps in mu would be of order 2 at gamma = 3/2.) The first step, and a step to sigma = 0, are plain `ddim`.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma}")
    x = trace.start()
    last: Value | None = None
    for a, b in pairwise(times):
        prediction = trace.evaluate(x, a)
        alpha_a, sigma_b = process.alpha(a), process.sigma(b)
        x = ddim(process, x, a, b, prediction)
        if gamma == 1 or alpha_a == 0:
            continue
        if last is not None and sigma_b > 0:
            push = sigma_b - process.sigma(a) * process.alpha(b) / alpha_a
            x = x + (prediction.eps - last) * ((gamma - 1) * push)
        last = prediction.eps
    return x
