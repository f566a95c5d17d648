"""PNDM: classical multistep weights on eps, carried by DDIM's transfer, with and without a Runge-Kutta start."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fewstep.core.lagrange import lagrange
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.sampling.common import ddim, gauss

_PAPER = "Pseudo Numerical Methods for Diffusion Models on Manifolds (Liu et al., 2022)"
METHODS = (
    Method(
        "pndm",
        paper=_PAPER,
        arxiv="2202.09778",
        claim="order 2: four-step weights after a Runge-Kutta start of 4 evaluations per step",
        use="pndm",
        facts={"order": 2},
    ),
    Method(
        "plms",
        paper=_PAPER,
        arxiv="2202.09778",
        claim="order 2: four-step weights after one improved Euler step, one evaluation more than steps",
        use="plms",
        facts={"order": 2},
    ),
    Method(
        "ipndm",
        paper="Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2023)",
        arxiv="2204.13902",
        claim="order 2 at one evaluation per step: the weights of up to 4 steps, fewer at the start",
        use="ipndm",
        facts={"order": 2, "orders": (2, 3, 4), "any_order": True},
    ),
)


def _transfer(process: Process, x: Value, eps: Value, a: float, b: float) -> Value:
    """DDIM's step with a given eps (eq. 11); alpha_a > 0."""
    ratio = process.alpha(b) / process.alpha(a)
    return x * ratio + eps * (process.sigma(b) - process.sigma(a) * ratio)


def _mix(history: Sequence[tuple[float, Value]], b: float, order: int = 4) -> Value:
    """The mean of eps over the step to b, eps a polynomial in time through the last `order` predictions.

    On equal steps these are the paper's weights, (55, -59, 37, -9) / 24 for order 4; on others they keep their order.
    """
    nodes = [t for t, _ in history[-order:]]
    points, weights = gauss(order // 2 + 1)
    means = np.stack(lagrange(nodes, nodes[-1] + (b - nodes[-1]) * points)) @ weights
    return sum((eps * w for (_, eps), w in zip(history[-order:], means, strict=True)), start=Value({}))


def _check_order(order: int) -> None:
    if order not in (1, 2, 3, 4):
        raise ValueError(f"the weights are those of 1 to 4 steps, got order {order}")


def ipndm(trace: Trace, process: Process, times: Sequence[float], order: int = 4) -> Value:
    """iPNDM (Zhang & Chen, section 4): pseudo linear multistep with lower orders at the start, one evaluation per step.

    Of order 2 from `order` 2 on: the mean of eps is one over time, while the transfer carries it over sigma/alpha
    (`lms` takes both in sigma/alpha, and has the orders that the weights promise). So that the start is of order 2 too,
    its first step is made again with the mean of both ends once the second prediction is there; the paper leaves it.
    `order` 1 is `ddim`.
    """
    _check_order(order)
    x = before = trace.start()
    history: list[tuple[float, Value]] = []
    for a, b in pairwise(times):
        prediction = trace.evaluate(x, a)
        if process.alpha(a) == 0:
            x = ddim(process, x, a, b, prediction)
            continue
        history.append((a, prediction.eps))
        if len(history) == 1:
            before = x
        elif len(history) == 2 and order > 1:
            x = _transfer(process, before, (history[0][1] + history[1][1]) * 0.5, history[0][0], a)
        x = _transfer(process, x, _mix(history, b, order), a, b)
    return x


def plms(trace: Trace, process: Process, times: Sequence[float], order: int = 4) -> Value:
    """Pseudo linear multistep: the first step is made twice, with the mean of eps at both of its ends.

    `order` is that of the weights; 2 is the paper's S-PNDM, (3, -1) / 2.
    """
    _check_order(order)
    x = trace.start()
    history: list[tuple[float, Value]] = []
    for a, b in pairwise(times):
        prediction = trace.evaluate(x, a)
        if process.alpha(a) == 0:
            x = ddim(process, x, a, b, prediction)
            continue
        eps = prediction.eps
        history.append((a, eps))
        if len(history) == 1 and process.sigma(b) > 0:
            after = trace.evaluate(_transfer(process, x, eps, a, b), b).eps
            x = _transfer(process, x, (eps + after) * 0.5, a, b)
        else:
            x = _transfer(process, x, _mix(history, b, order), a, b)
    return x


def pndm(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """Pseudo Runge-Kutta for three steps (four evaluations each), then pseudo linear multistep (F-PNDM).

    A step to sigma = 0 takes one evaluation in either part: eps at sigma = 0 carries no information.
    """
    x = trace.start()
    history: list[tuple[float, Value]] = []
    for a, b in pairwise(times):
        prediction = trace.evaluate(x, a)
        if process.alpha(a) == 0:
            x = ddim(process, x, a, b, prediction)
            continue
        e1 = prediction.eps
        history.append((a, e1))
        if len(history) <= 3 and process.sigma(b) > 0:
            middle = 0.5 * (a + b)
            e2 = trace.evaluate(_transfer(process, x, e1, a, middle), middle).eps
            e3 = trace.evaluate(_transfer(process, x, e2, a, middle), middle).eps
            e4 = trace.evaluate(_transfer(process, x, e3, a, b), b).eps
            x = _transfer(process, x, (e1 + e2 * 2.0 + e3 * 2.0 + e4) / 6.0, a, b)
        else:
            x = _transfer(process, x, _mix(history, b), a, b)
    return x
