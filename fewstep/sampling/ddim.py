"""DDIM and DDPM: the first-order solvers, deterministic and ancestral."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import SymbolicPrediction, Trace, Value
from fewstep.sampling.common import ddim as ddim_step

METHODS = (
    Method(
        "ddim",
        paper="Denoising Diffusion Implicit Models (Song et al., 2021)",
        arxiv="2010.02502",
        claim="order 1; eta = 1 is ancestral sampling",
        use="ddim",
        facts={"order": 1},
    ),
    Method(
        "ddpm",
        paper="Denoising Diffusion Probabilistic Models (Ho et al., 2020)",
        arxiv="2006.11239",
        claim="ancestral sampling: each step draws from the posterior given the predicted x0",
        use="ddpm",
        facts={"stochastic": True},
    ),
)


def ancestral(process: Process, a: float, b: float, eta: float) -> float:
    """Standard deviation of the noise of a step from a to b: eta times that of the posterior q(x_b | x_a, x0).

    `eta sigma_b sqrt(1 - r^2)` with `r = sigma_b alpha_a / (sigma_a alpha_b) = exp(log_snr_a - log_snr_b)`
    (Song et al., eq. 16); r is 0 at either infinite end.
    """
    ratio = math.exp(process.log_snr(a) - process.log_snr(b))
    return eta * process.sigma(b) * math.sqrt(-math.expm1(2 * math.log(ratio))) if ratio > 0 else eta * process.sigma(b)


def ddim(trace: Trace, process: Process, times: Sequence[float], eta: float = 0.0) -> Value:
    """`x_b = alpha_b x0 + sqrt(sigma_b^2 - s^2) eps + s z`, s as in `ancestral` (Song et al., eq. 12).

    On x / alpha this is k-diffusion's euler_ancestral with the same eta.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be between 0 and 1, got {eta}")
    x = trace.start()
    for a, b in pairwise(times):
        x = noisy_step(trace, process, x, a, b, trace.evaluate(x, a), eta)
    return x


def noisy_step(
    trace: Trace, process: Process, x: Value, a: float, b: float, prediction: SymbolicPrediction, eta: float
) -> Value:
    """`ddim`'s step from a to b with a prediction at a; with eta = 1 a draw from the posterior `q(x_b | x_a, x0)`."""
    if eta == 0:
        return ddim_step(process, x, a, b, prediction)
    s, of_x, of_x0 = posterior(process, a, b, eta)
    # eps = (x - alpha_a x0) / sigma_a keeps one prediction per step; sigma_a > 0 at every evaluation.
    x = x * of_x + prediction.x0 * of_x0
    return x + trace.noise(a, b) * s if s > 0 else x


def posterior(process: Process, a: float, b: float, eta: float = 1.0) -> tuple[float, float, float]:
    """The standard deviation of the noise of a step from a to b, and the factors of x and of x0 in its mean: with eta
    = 1 those of `q(x_b | x_a, x0)` (Song et al., eq. 7 and 16)."""
    s, sigma_a, sigma_b = ancestral(process, a, b, eta), process.sigma(a), process.sigma(b)
    direction = math.sqrt(max(sigma_b**2 - s**2, 0.0))
    return s, direction / sigma_a, process.alpha(b) - process.alpha(a) * direction / sigma_a


def ddpm(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """Ancestral sampling with the posterior's variance: DDIM with eta = 1 (Ho et al., eq. 7)."""
    return ddim(trace, process, times, eta=1.0)
