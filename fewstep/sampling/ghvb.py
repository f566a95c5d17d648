"""Momentum that keeps the order: Adams-Bashforth on a running mean of the predictions (GHVB)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fewstep.core.lagrange import lagrange
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.sampling.common import Frame, Point, step, step_weights

METHODS = (
    Method(
        "ghvb",
        paper="Diffusion Sampling with Momentum for Mitigating Divergence Artifacts (Wizadwongsa et al., 2024)",
        arxiv="2307.11118",
        claim="order p at one evaluation per step, stable on longer steps than ab as beta falls below 1",
        use="ghvb",
        facts={"order": 0, "plus_p": True, "orders": (1, 2, 3, 4), "any_order": True},
    ),
)


def ghvb(trace: Trace, process: Process, times: Sequence[float], order: int = 2, beta: float = 0.8) -> Value:
    """Generalised heavy ball: `v_n = (1 - beta) v_(n-1) + beta eps_n`, and the state moves by the newest `order` v.

    The combination of them is the one that integrates eps exactly where it is a polynomial below the order in log-SNR,
    through all that the means remember, so uneven steps keep the order. On short equal steps that is the paper's
    (order 2: `((2 + beta) v_n - (2 - beta) v_(n-1)) / (2 beta)`); at `beta = 1` it is `ab`. The start is that of `ab`.

    `beta`, in (0, 1]: a smaller one is stable on longer steps, but has a larger error.
    """
    if not 0 < beta <= 1:
        raise ValueError(f"beta must be above 0 and at most 1, got {beta}")
    if order < 1:
        raise ValueError(f"the order must be at least 1, got {order}")
    frame = Frame("eps", "log_snr")
    order = min(order, len(times) - 1)
    first = x = trace.start()
    points: list[Point] = []
    log_snrs: list[float] = []  # of the predictions that the means hold
    means: list[tuple[Value, list[float]]] = []  # the newest means, and the share of each prediction in them
    warm_up = order - 2 if process.alpha(times[0]) > 0 else 0
    for k, (a, b) in enumerate(pairwise(times)):
        points.append((a, trace.evaluate(x, a)))
        if 1 <= k <= warm_up:  # the start of adams_bashforth
            if k < warm_up:
                corrected = [step(process, frame, first, times[0], t, points) for t in times[1 : k + 1]]
                points[1:] = [(t, trace.evaluate(v, t)) for t, v in zip(times[1 : k + 1], corrected, strict=True)]
            x = step(process, frame, first, times[0], a, points)
        if k >= warm_up:  # from here on the predictions stand
            for t, prediction in points[-1:] if k > warm_up else points:
                if process.alpha(t) > 0:
                    log_snrs.append(process.log_snr(t))
                    means = [*means, _next(trace, means, prediction.eps, beta)][-order:]
        points = points[-order:]
        if not means or k < warm_up or process.sigma(b) == 0:
            x = step(process, frame, x, a, b, points)
        else:
            x = _step(process, frame, x, a, b, means, log_snrs)
    return x


def _next(
    trace: Trace, means: Sequence[tuple[Value, list[float]]], eps: Value, beta: float
) -> tuple[Value, list[float]]:
    """The next mean: kept, for it would else be written out to the first prediction."""
    if not means or beta == 1:
        return eps, [*(0.0 for _ in (means[-1][1] if means else ())), 1.0]
    last, shares = means[-1]
    return trace.keep(last * (1 - beta) + eps * beta), [*((1 - beta) * share for share in shares), beta]


def _step(
    process: Process,
    frame: Frame,
    x: Value,
    a: float,
    b: float,
    means: Sequence[tuple[Value, list[float]]],
    log_snrs: Sequence[float],
) -> Value:
    """From a to b with the combination of the means that is right for every polynomial through as many nodes.

    With l_j the Lagrange basis of the newest nodes, mean i holds `M_ij = sum_m share_im l_j(node_m)` of l_j, and l_j
    must come to its integral w_j over the step: `M^T c = w`.
    """
    nodes = log_snrs[-len(means) :]
    scale, wanted = step_weights(process, frame, a, b, [process.time(node) for node in nodes])
    basis = np.stack(lagrange(nodes, np.array(log_snrs)))
    held = np.array([basis[:, : len(shares)] @ shares for _, shares in means])
    value = x * scale
    for c, (mean, _) in zip(np.linalg.solve(held.T, wanted), means, strict=True):
        value = value + mean * float(c)
    return value
