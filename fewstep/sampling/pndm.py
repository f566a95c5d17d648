"""PNDM: classical multistep weights on eps, carried by DDIM's transfer, with and without a Runge-Kutta start."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.sampling.common import ddim, gauss, lagrange

_PAPER = "Pseudo Numerical Methods for Diffusion Models on Manifolds (Liu et al., 2022)"
METHODS = (
    Method(
        "pndm",
        paper=_PAPER,
        arxiv="2202.09778",
        claim="order 2: four-step weights after a Runge-Kutta start of 4 evaluations a step",
        use="pndm",
        facts={"order": "2"},
    ),
    Method(
        "plms",
        paper=_PAPER,
        arxiv="2202.09778",
        claim="order 2: four-step weights after one improved Euler step, one evaluation more than steps",
        use="plms",
        facts={"order": "2"},
    ),
)


def _transfer(process: Process, x: Value, eps: Value, a: float, b: float) -> Value:
    """DDIM's step with a given eps (eq. 11); alpha_a > 0."""
    ratio = process.alpha(b) / process.alpha(a)
    return x * ratio + eps * (process.sigma(b) - process.sigma(a) * ratio)


def _mix(history: Sequence[tuple[float, Value]], b: float) -> Value:
    """The mean of eps over the step to b, eps a polynomial in time through the last four predictions.

    On equal steps these are the paper's weights, (55, -59, 37, -9) / 24; on others they keep their order.
    """
    nodes = [t for t, _ in history[-4:]]
    points, weights = gauss(4)
    means = lagrange(nodes, nodes[-1] + (b - nodes[-1]) * points) @ weights
    return sum((eps * w for (_, eps), w in zip(history[-4:], means, strict=True)), start=Value({}))


def plms(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """Pseudo linear multistep: the first step is made twice, with the mean of eps at both of its ends."""
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
            x = _transfer(process, x, _mix(history, b), a, b)
    return x


def pndm(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """Pseudo Runge-Kutta for three steps (four evaluations each), then pseudo linear multistep (F-PNDM).

    A step to sigma = 0 takes one evaluation in either part: eps at sigma = 0 says nothing.
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
