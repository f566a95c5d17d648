"""UniPC: a predictor and a corrector that uses the next step's evaluation, so the correction costs none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import SymbolicPrediction, Trace, Value
from fewstep.sampling.common import Frame, Point, ddim, gauss, step

METHODS = (
    Method(
        "unipc",
        paper="UniPC: A Unified Predictor-Corrector Framework for Fast Sampling (Zhao et al., 2023)",
        arxiv="2302.04867",
        claim="order p + 1 at one evaluation per step",
        use="unipc",
        facts={"order": 1, "plus_p": True, "orders": (1, 2, 3, 4), "any_order": True},
    ),
)

VARIANTS = ("bh1", "bh2")


def _phi(k: int, z: float) -> float:
    """`phi_k(z) = integral_0^1 e^((1 - s) z) s^(k - 1) / (k - 1)! ds`, without the recurrence's cancellation."""
    nodes, weights = gauss(32)
    return float(np.sum(weights * np.exp((1 - nodes) * z) * nodes ** (k - 1))) / math.factorial(k - 1)


def _solve(ratios: Sequence[float], h: float, scale: float) -> np.ndarray:
    """UniPC's weights: `R rho = b` with `R_ij = r_j^(i - 1)`, `b_i = i! (-h) phi_{i + 1}(-h) / B(h)` (theorem 3.1)."""
    n = len(ratios)
    powers = np.array([[r**i for r in ratios] for i in range(n)])
    b = np.array([math.factorial(i) * -h * _phi(i + 1, -h) / scale for i in range(1, n + 1)])
    return np.linalg.solve(powers, b)


def unipc(
    trace: Trace, process: Process, times: Sequence[float], order: int = 2, variant: str = "bh2", corrector: bool = True
) -> Value:
    """UniPC-p in its data-prediction form (Algorithms 5 to 8): UniP-p predicts, UniC-p corrects.

    `variant` is B(h) = -h ("bh1") or e^-h - 1 ("bh2"). With `corrector=False` it is UniP-p, of order p. Orders rise by
    one per step at the start, as in the paper; for p >= 3 the states and predictions of the start are improved as in
    `adams_bashforth`, for (p - 2)(p - 1)/2 evaluations more, because a corrected first step alone caps the order at 3.
    """
    if variant not in VARIANTS:
        raise suggest("UniPC variant", variant, VARIANTS)
    if order < 1:
        raise ValueError(f"the order must be at least 1, got {order}")
    n = len(times) - 1
    order = min(order, n)
    frame = Frame("x0", "log_snr")
    first = x = trace.start()
    points: list[Point] = []
    # The start holds x_k to an error of h^(k + 2) for k up to `warm_up`.
    goal = order + 1 if corrector else order
    warm_up = goal - 2 if goal > 3 and process.alpha(times[0]) > 0 else 0
    previous = x
    for k, (a, b) in enumerate(pairwise(times)):
        prediction = trace.evaluate(x, a)
        if k > 0:
            if 1 <= k <= warm_up:
                points.append((a, prediction))
                if k < warm_up:
                    corrected = [step(process, frame, first, times[0], t, points) for t in times[1 : k + 1]]
                    points[1:] = [(t, trace.evaluate(v, t)) for t, v in zip(times[1 : k + 1], corrected, strict=True)]
                x = step(process, frame, first, times[0], a, points)
            else:
                if corrector:
                    x = _step(process, previous, times[k - 1], a, points[-order:], variant, prediction)
                points.append((a, prediction))
        else:
            points.append((a, prediction))
        if b == times[-1] or corrector:
            trace.keep(x)
        previous = x
        x = _step(process, x, a, b, points[-min(order, k + 1) :], variant, None)
    return x


def _step(
    process: Process,
    x: Value,
    a: float,
    b: float,
    points: Sequence[Point],
    variant: str,
    target: SymbolicPrediction | None,
) -> Value:
    """UniP (target None) or UniC from a to b: `points` are known predictions, the newest at a."""
    h = process.log_snr(b) - process.log_snr(a)
    newest = points[-1][1]
    if math.isinf(h):
        return ddim(process, x, a, b, newest)
    x0 = newest.x0
    scale = -h if variant == "bh1" else math.expm1(-h)
    start = process.log_snr(a)
    older = [(process.log_snr(t), p) for t, p in points[:-1]]
    nodes = [((value - start) / h, p.x0) for value, p in reversed(older) if math.isfinite(value)]
    if target is not None:
        nodes.append((1.0, target.x0))
    base = x * (process.sigma(b) / process.sigma(a)) - x0 * (process.alpha(b) * math.expm1(-h))
    if not nodes:
        return base
    ratios = [r for r, _ in nodes]
    # One difference alone is weighted by 1/2, whatever B is: the paper's simplification, of the same order.
    rho = np.array([0.5]) if len(nodes) == 1 else _solve(ratios, h, scale)
    for weight, (r, value) in zip(rho, nodes, strict=True):
        base = base - (value - x0) * (process.alpha(b) * scale * float(weight) / r)
    return base
