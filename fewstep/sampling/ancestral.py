"""Ancestral sampling around a second-order step: down by the ODE to less noise than wanted, then up by fresh noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.sampling.ddim import ancestral

METHODS = (
    Method(
        "dpm-2-ancestral",
        paper="k-diffusion's ancestral DPM-Solver-2 (Crowson, 2022)",
        claim="ancestral noise around DPM-Solver-2's step, two evaluations per step",
        use="dpm_2_ancestral",
        facts={"stochastic": True},
    ),
    Method(
        "dpmpp-2s-ancestral",
        paper="k-diffusion's ancestral DPM-Solver++(2S) (Crowson, 2022)",
        claim="ancestral noise around DPM-Solver++(2S)'s step, two evaluations per step",
        use="dpmpp_2s_ancestral",
        facts={"stochastic": True},
    ),
)


def dpm_2_ancestral(trace: Trace, process: Process, times: Sequence[float], eta: float = 1.0) -> Value:
    """The ODE by DPM-Solver-2 from sigma_a to `sigma_down`, then noise of `sigma_up` (sigma/alpha, on x / alpha).

    `sigma_up = eta sigma_b sqrt(1 - sigma_b^2 / sigma_a^2)`, the posterior's standard deviation, and
    `sigma_down^2 = sigma_b^2 - sigma_up^2`. At eta = 0 it is `dpm-solver-2`; with a first-order step it would be `ddim`
    with the same eta (k-diffusion's euler_ancestral). The noise-free part is that of the reverse SDE to first order
    only: its second order is the ODE's.
    """
    return _ancestral(trace, process, times, eta, "eps")


def dpmpp_2s_ancestral(trace: Trace, process: Process, times: Sequence[float], eta: float = 1.0) -> Value:
    """The same around DPM-Solver++(2S): x0, not eps, is taken in the middle. At eta = 0 it is `dpmpp-2s`."""
    return _ancestral(trace, process, times, eta, "x0")


def _ancestral(trace: Trace, process: Process, times: Sequence[float], eta: float, kind: str) -> Value:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be between 0 and 1, got {eta}")
    x = trace.start()
    for a, b in pairwise(times):
        prediction = trace.evaluate(x, a)
        alpha_a, alpha_b, sigma_b = process.alpha(a), process.alpha(b), process.sigma(b)
        up = ancestral(process, a, b, eta)
        if alpha_a == 0 or sigma_b == 0:
            x0 = prediction.x0  # eps = x / sigma_a at alpha_a = 0
            x = x0 * alpha_b + (x * (math.sqrt(sigma_b**2 - up**2) / process.sigma(a)) if sigma_b > 0 else Value({}))
        else:
            here = process.sigma(a) / alpha_a
            down = math.sqrt((sigma_b / alpha_b) ** 2 - (up / alpha_b) ** 2)
            # At eta = 1 the middle is sigma_b itself, so no evaluation leaves the grid.
            middle = math.sqrt(here * down)
            s = process.time(-math.log(middle))
            towards = process.alpha(s) * (middle / here)
            state = x * (towards / alpha_a) + prediction.x0 * (process.alpha(s) - towards)
            answer = trace.evaluate(state, s)
            if kind == "eps":
                x = x * (alpha_b / alpha_a) + answer.eps * (alpha_b * (down - here))
            else:
                x = x * (alpha_b * down / (here * alpha_a)) + answer.x0 * (alpha_b * (1 - down / here))
        if up > 0:
            x = x + trace.noise(a, b) * up
    return x
