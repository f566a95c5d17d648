"""DPM-Solver++: exponential solvers on x0 in log-SNR, single-step and multistep, deterministic and stochastic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.sampling.common import Frame, adams_bashforth, ddim, noise_std

_PAPER = "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022)"
METHODS = (
    Method(
        "dpmpp-2m",
        paper=_PAPER,
        arxiv="2211.01095",
        claim="order 2 at one evaluation per step",
        use="dpmpp_2m",
        facts={"order": 2},
    ),
    Method(
        "dpmpp-3m",
        paper=_PAPER,
        arxiv="2211.01095",
        claim="order 3 at one evaluation per step",
        use="dpmpp_3m",
        facts={"order": 3},
    ),
    Method(
        "dpmpp-2s",
        paper=_PAPER,
        arxiv="2211.01095",
        claim="order 2 at two evaluations per step",
        use="dpmpp_2s",
        facts={"order": 2},
    ),
    Method(
        "dpmpp-3s",
        paper=_PAPER,
        arxiv="2211.01095",
        claim="order 3 at three evaluations per step",
        use="dpmpp_3s",
        facts={"order": 3},
    ),
    Method(
        "dpmpp-2m-sde",
        paper=_PAPER,
        arxiv="2211.01095",
        claim="the reverse SDE at one evaluation per step, order 2 in its drift",
        use="dpmpp_2m_sde",
        facts={"stochastic": True, "drift_order": 2},
    ),
    Method(
        "dpmpp-3m-sde",
        paper=_PAPER,
        arxiv="2211.01095",
        claim="the reverse SDE at one evaluation per step, order 3 in its drift",
        use="dpmpp_3m_sde",
        facts={"stochastic": True, "drift_order": 3},
    ),
    Method(
        "dpmpp-2s-sde",
        paper=_PAPER,
        arxiv="2211.01095",
        claim="the reverse SDE at two evaluations per step, order 2 in its drift, one noise path through both",
        use="dpmpp_2s_sde",
        facts={"stochastic": True, "drift_order": 2},
    ),
)


def _check_eta(eta: float) -> None:
    if not eta >= 0:
        raise ValueError(f"eta must not be negative, got {eta}")


def dpmpp_2m(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """DPM-Solver++(2M), Algorithm 2: x0 extrapolated to the middle of the step.

    That is its "midpoint" form. The "heun" form integrates the line through both x0 exactly, which is `ab-x0-2`.
    """
    return dpmpp_2m_sde(trace, process, times, eta=0.0)


def dpmpp_2m_sde(trace: Trace, process: Process, times: Sequence[float], eta: float = 1.0) -> Value:
    """SDE-DPM-Solver++(2M): `D = x0 + h / (2 h_last) (x0 - x0_last)`, then

    `x_b = sigma_b/sigma_a e^(-eta h) x_a + alpha_b (1 - e^(-(1 + eta) h)) D + sigma_b sqrt(1 - e^(-2 eta h)) z`.

    With `D = x0` that is SDE-DPM-Solver++(1), at eta = 1 the same numbers as `ddpm`.
    """
    _check_eta(eta)
    x = trace.start()
    last: tuple[Value, float] | None = None
    for a, b in pairwise(times):
        prediction = trace.evaluate(x, a)
        x0, h = prediction.x0, process.log_snr(b) - process.log_snr(a)
        if math.isinf(h):
            x = ddim(process, x, a, b, prediction) if eta == 0 else x0 * process.alpha(b)
        else:
            # From a start at alpha = 0 the last step was infinitely long, and the slope is 0.
            guess = x0 if last is None else x0 + (x0 - last[0]) * (h / (2 * last[1]))
            shrink = process.sigma(b) / process.sigma(a) * math.exp(-eta * h)
            x = x * shrink - guess * (process.alpha(b) * math.expm1(-(1 + eta) * h))
        if (std := noise_std(process, eta, a, b)) > 0:
            x = x + trace.noise(a, b) * std
        last = (x0, h)
    return x


def dpmpp_3m(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """DPM-Solver++ of third order, multistep: the exact step for x0 quadratic in log-SNR, its start corrected."""
    return adams_bashforth(trace, process, times, Frame("x0", "log_snr"), order=3)


def dpmpp_3m_sde(trace: Trace, process: Process, times: Sequence[float], eta: float = 1.0) -> Value:
    """The same for the reverse SDE: third order in its drift."""
    _check_eta(eta)
    return adams_bashforth(trace, process, times, Frame("x0", "log_snr", eta), order=3)


def dpmpp_2s(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """DPM-Solver++(2S), Algorithm 1 with r = 1/2: x0 taken in the middle of the step."""
    return dpmpp_2s_sde(trace, process, times, eta=0.0)


def dpmpp_2s_sde(trace: Trace, process: Process, times: Sequence[float], eta: float = 1.0) -> Value:
    """DPM-Solver++(2S) for the reverse SDE: the step's noise is the middle's, carried on, and a fresh part."""
    _check_eta(eta)
    x = trace.start()
    for a, b in pairwise(times):
        prediction = trace.evaluate(x, a)
        h = process.log_snr(b) - process.log_snr(a)
        if math.isinf(h):
            x = ddim(process, x, a, b, prediction) if eta == 0 else prediction.x0 * process.alpha(b)
            if (std := noise_std(process, eta, a, b)) > 0:
                x = x + trace.noise(a, b) * std
            continue
        s = process.time(process.log_snr(a) + 0.5 * h)
        middle = _pull(process, x, prediction.x0, a, s, eta)
        noise = None
        if eta > 0:
            noise = trace.noise(a, s) * noise_std(process, eta, a, s)
            middle = middle + noise
        x = _pull(process, x, trace.evaluate(middle, s).x0, a, b, eta)
        if noise is not None:
            carried = process.sigma(b) / process.sigma(s) * math.exp(-0.5 * eta * h)
            x = x + noise * carried + trace.noise(s, b) * noise_std(process, eta, s, b)
    return x


def dpmpp_3s(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """DPM-Solver++(3S): stages at 1/3 and 2/3 of the step in log-SNR, as in DPM-Solver-3, on x0.

    Steps from alpha = 0 and to sigma = 0 are first-order, with one evaluation.
    """
    x = trace.start()
    for a, b in pairwise(times):
        prediction = trace.evaluate(x, a)
        h = process.log_snr(b) - process.log_snr(a)
        if math.isinf(h):
            x = ddim(process, x, a, b, prediction)
            continue
        s1, s2 = (process.time(process.log_snr(a) + r * h) for r in (1 / 3, 2 / 3))
        x0 = prediction.x0
        first = trace.evaluate(_pull(process, x, x0, a, s1, 0.0), s1).x0 - x0
        u2 = _pull(process, x, x0, a, s2, 0.0) + first * (2 * process.alpha(s2) * _linear(2 / 3 * h))
        second = trace.evaluate(u2, s2).x0 - x0
        x = _pull(process, x, x0, a, b, 0.0) + second * (1.5 * process.alpha(b) * _linear(h))
    return x


def _linear(h: float) -> float:
    """What a difference that grows linearly over the step adds: `1 + (e^-h - 1) / h`, the integral of
    `(s / h) e^-(h - s)` over s from 0 to h."""
    return 1 + math.expm1(-h) / h


def _pull(process: Process, x: Value, x0: Value, a: float, b: float, eta: float) -> Value:
    """The drift's exact step for a constant x0."""
    h = process.log_snr(b) - process.log_snr(a)
    shrink = process.sigma(b) / process.sigma(a) * math.exp(-eta * h)
    return x * shrink - x0 * (process.alpha(b) * math.expm1(-(1 + eta) * h))
