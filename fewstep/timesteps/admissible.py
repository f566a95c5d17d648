"""Geometric noise levels on which a denoiser with a known relative error still brings every sample nearer."""

from __future__ import annotations

import math

from fewstep.core.methods import Method
from fewstep.core.process import Process

METHODS = (
    Method(
        "admissible",
        paper="Interpreting and Improving Diffusion Models from an Optimization Perspective (Permenter & Yuan, 2024)",
        arxiv="2306.04848",
        claim="equal steps in log-SNR, no longer than a denoiser of relative error eta allows",
        use="admissible",
    ),
)

NOISE = -5.0  # log-SNR, at which the noise is 150 times the data


def admissible_step(steps: int, eta: float = 0.05, nu: float = 2.0) -> float:
    """The largest beta for which `steps` steps `sigma -> (1 - beta) sigma` are (eta, nu)-admissible: c / (eta + c) with
    `c = 1 - nu^(-1/steps)` (Permenter & Yuan, theorem 4.2).

    A denoiser whose prediction misses the projection by at most `eta dist(x)`, wherever `sqrt(n) sigma` is within a
    factor nu of the distance dist(x), then keeps it there: each step multiplies the distance by a factor between
    `1 - beta (1 + eta)` and `1 - beta (1 - eta)`, and the products of the former stay within nu of `(1 - beta)^k`.

    Of all admissible steps, equal ones reach lowest: with u = beta / (1 - beta) the descent, the sum of log(1 + u), is
    concave, and what the condition bounds, the sum of -log(1 - eta u), is convex.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not eta > 0:
        raise ValueError(f"eta, the denoiser's relative error, must be above 0, got {eta}")
    if not nu > 1:
        raise ValueError(f"nu, the factor allowed between noise and distance, must be above 1, got {nu}")
    c = -math.expm1(-math.log(nu) / steps)
    return c / (eta + c)


def admissible(process: Process, steps: int, end: str = "zero", eta: float = 0.05, nu: float = 2.0) -> list[float]:
    """All steps but the last multiply sigma/alpha by `1 - admissible_step(...)`; the last goes straight to the end.

    A process that begins at more noise than `NOISE` is entered there: steps before it would only delay the rest. With
    few steps the grid stops well above the smallest noise, and leaves the rest to one denoising step. Where the
    admissible steps would reach below it, they are shortened to equal steps in log-SNR over the whole range.

    Args:
        eta: the denoiser's relative error, above 0; nu: the factor by which noise and distance may part, above 1.
    """
    high, low, first = process.log_snr(process.t_min), process.log_snr(process.t_max), process.t_max
    if math.isinf(low):  # pure noise has no log-SNR: the first step is counted from where it is still noise
        low = max(process.log_snr(process.t_max - 1e-3 * (process.t_max - process.t_min)), NOISE)
    elif low < NOISE:
        low, first = NOISE, process.time(NOISE)
    inner = steps - 1
    if inner == 0:
        return [first, process.t_zero if end == "zero" else process.t_min]
    stride = -math.log1p(-admissible_step(inner, eta, nu))
    whole = (high - low) / (steps if end == "min" else inner)
    times = [first, *(process.time(low + min(stride, whole) * k) for k in range(1, inner))]
    last = process.t_min if end == "zero" and whole <= stride else process.time(low + min(stride, whole) * inner)
    return [*times, last, process.t_zero if end == "zero" else process.t_min]
