"""What the solvers share: exact linear steps between two times, from predictions at any times.

The probability-flow ODE is linear in the state once the prediction is taken as given. In a *frame*

    d(x / scale) = f d(mu),

with f the prediction in the frame's kind, its step from a to b is
`x_b = scale_b / scale_a x_a + scale_b * integral of f d(mu)`. Replacing f by the polynomial through known predictions,
in some variable s, makes every Adams-type solver of this room:

    frame   kind   scale          mu                     solvers
    eps     eps    alpha          sigma / alpha          DEIS (s = t), Adams-Bashforth (s = log-SNR), LMS (s = mu)
    x0      x0     sigma          alpha / sigma          DPM-Solver++, SA-Solver (s = log-SNR)
    flow    flow   alpha + sigma  sigma/(alpha + sigma)  velocity Adams-Bashforth (s = mu)
    v       v / r  r              atan2(sigma, alpha)    v Adams-Bashforth (s = mu); r = hypot(alpha, sigma)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from fewstep.core.lagrange import lagrange
from fewstep.core.process import Process
from fewstep.core.trace import SymbolicPrediction, Trace, Value

Point = tuple[float, SymbolicPrediction]  # a time and the network's prediction there
REGULAR = ("flow", "v")  # kinds whose frame is finite at both ends of every process


@dataclass(frozen=True)
class Frame:
    """A kind of prediction, and the variable in which it is taken for a polynomial: "t", "log_snr" or "mu".

    `eta` adds noise (x0 and log-SNR only): the reverse SDE whose drift has `1 + eta` times the ODE's pull towards x0,
    `x_b = sigma_b/sigma_a e^(-eta h) x_a + alpha_b (1 + eta) integral of e^(-(1 + eta)(lambda_b - lambda)) x0
    + sigma_b sqrt(1 - e^(-2 eta h)) z` (Lu et al., DPM-Solver++, eq. 19 at eta = 1).
    """

    kind: str
    variable: str
    eta: float = 0.0


def ddim(process: Process, x: Value, a: float, b: float, prediction: SymbolicPrediction) -> Value:
    """The first-order step from a to b: exact for a constant prediction, finite at alpha_a = 0 and at sigma_b = 0."""
    alpha_a, sigma_a, alpha_b, sigma_b = process.alpha(a), process.sigma(a), process.alpha(b), process.sigma(b)
    if sigma_b == 0:
        return prediction.x0 * alpha_b
    if alpha_a >= sigma_a:  # the two forms are equal; near the data eps changes less, in the noise x0
        return x * (alpha_b / alpha_a) + prediction.eps * (sigma_b - sigma_a * alpha_b / alpha_a)
    return x * (sigma_b / sigma_a) + prediction.x0 * (alpha_b - alpha_a * sigma_b / sigma_a)


@functools.cache
def gauss(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return 0.5 * (nodes + 1), 0.5 * weights


def _mu(kind: str, alpha: float, sigma: float) -> float:
    if kind == "eps":
        return sigma / alpha
    if kind == "x0":
        return alpha / sigma
    return math.atan2(sigma, alpha) if kind == "v" else sigma / (alpha + sigma)


def _scale(kind: str, alpha: float, sigma: float) -> float:
    return {"eps": alpha, "x0": sigma, "flow": alpha + sigma, "v": math.hypot(alpha, sigma)}[kind]


def step_weights(
    process: Process, frame: Frame, a: float, b: float, nodes: Sequence[float]
) -> tuple[float, list[float]]:
    """`x_b = A x_a + sum_j w_j f(t_j)`: A and w for the polynomial of f through the times `nodes`.

    The integrals are Gauss-Legendre sums: over mu where the polynomial is in mu (then exact), over log-SNR otherwise,
    scaled by the value at b so that nothing overflows.
    """
    kind, at = frame.kind, (process.alpha(a), process.sigma(a))
    to = (process.alpha(b), process.sigma(b))
    scale_a, scale_b = _scale(kind, *at), _scale(kind, *to)
    if frame.variable == "mu":
        low, high = _mu(kind, *at), _mu(kind, *to)
        points, weights = gauss(len(nodes) // 2 + 1)
        values = [_mu(kind, process.alpha(t), process.sigma(t)) for t in nodes]
        basis = np.stack(lagrange(values, low + (high - low) * points))
        means = basis @ weights
        if kind == "v":  # the polynomial is that of v / r
            means = means / [math.hypot(process.alpha(t), process.sigma(t)) for t in nodes]
        return scale_b / scale_a, list(scale_b * (high - low) * means)
    start, stop = process.log_snr(a), process.log_snr(b)
    points, weights = gauss(32)
    log_snr = start + (stop - start) * points
    h = stop - start
    # scale_b d(mu) is -sigma_b e^(lambda_b - lambda) d lambda for eps, alpha_b e^(lambda - lambda_b) d lambda for x0.
    if kind == "eps":
        measure = -to[1] * np.exp(stop - log_snr)
    else:
        measure = to[0] * (1 + frame.eta) * np.exp((1 + frame.eta) * (log_snr - stop))
    if frame.variable == "log_snr":
        basis = np.stack(lagrange([process.log_snr(t) for t in nodes], log_snr))
    else:
        basis = np.stack(lagrange(list(nodes), process.time(torch.from_numpy(log_snr)).numpy()))
    return scale_b / scale_a * math.exp(-frame.eta * h), list(basis @ (weights * measure * h))


def noise_std(process: Process, eta: float, a: float, b: float) -> float:
    """Standard deviation of the noise that the reverse SDE adds from a to b."""
    h = process.log_snr(b) - process.log_snr(a)
    return process.sigma(b) * math.sqrt(-math.expm1(-2 * eta * h)) if eta > 0 else 0.0


def step(process: Process, frame: Frame, x: Value, a: float, b: float, points: Sequence[Point]) -> Value:
    """From a to b with the polynomial through `points` (newest last), or the first-order step where it has no limit.

    At alpha = 0 and at sigma = 0 the log-SNR is infinite, so a frame in log-SNR (or in t, integrated over log-SNR)
    falls back to the newest prediction alone, and leaves out a point at infinity.
    """
    alpha_a, sigma_b = process.alpha(a), process.sigma(b)
    if frame.eta > 0 and alpha_a == 0:  # from pure noise the SDE forgets where it was
        return points[-1][1].x0 * process.alpha(b)
    if frame.variable != "mu" and (alpha_a == 0 or sigma_b == 0):
        return ddim(process, x, a, b, points[-1][1])
    if (frame.kind == "eps" and alpha_a == 0) or (frame.kind == "x0" and sigma_b == 0):
        return ddim(process, x, a, b, points[-1][1])
    if frame.kind not in REGULAR:
        points = [point for point in points if process.alpha(point[0]) > 0]
    scale, weights = step_weights(process, frame, a, b, [t for t, _ in points])
    value = x * scale
    for w, (_, prediction) in zip(weights, points, strict=True):
        value = value + getattr(prediction, frame.kind) * w
    return value


def adams_bashforth(trace: Trace, process: Process, times: Sequence[float], frame: Frame, order: int) -> Value:
    """The multistep solver of a frame, of its stated order from the first step.

    A first-order first step would leave an error of h^2, and cap every higher order at 2. So for order 3 and above the
    start is corrected as evaluations come in: with the predictions at t_0 ... t_k every state x_1 ... x_k is computed
    anew from x_0 by the polynomial through all of them, which has a local error of h^(k + 2). For order 3 that costs no
    evaluation. For order p >= 4 the predictions at t_1 ... t_k are made again at the corrected states, for
    k = 1 ... p - 3: (p - 3)(p - 2)/2 evaluations more. Grids shorter than the order use the order they can hold.
    """
    if order < 1:
        raise ValueError(f"the order must be at least 1, got {order}")
    order = min(order, len(times) - 1)
    first = x = trace.start()
    points: list[Point] = []
    noise: Value | None = None  # what the steps so far have added to the state
    # A start at alpha = 0 has no finite log-SNR: its first step is first-order in any case.
    warm_up = order - 2 if process.alpha(times[0]) > 0 or frame.kind in REGULAR else 0
    for k, (a, b) in enumerate(pairwise(times)):
        points.append((a, trace.evaluate(x, a)))
        if 1 <= k <= warm_up:
            start = times[0]
            if k < warm_up:
                corrected = [step(process, frame, first, start, t, points) for t in times[1 : k + 1]]
                points[1:] = [(t, trace.evaluate(v, t)) for t, v in zip(times[1 : k + 1], corrected, strict=True)]
            x = step(process, frame, first, start, a, points)
            x = x if noise is None else x + noise
        x = step(process, frame, x, a, b, points[-order:])
        if (std := noise_std(process, frame.eta, a, b)) > 0:
            fresh = trace.noise(a, b) * std
            if k < warm_up:
                carried = noise * step_weights(process, frame, a, b, [a])[0] if noise is not None else Value({})
                noise = carried + fresh
            x = x + fresh
    return x
