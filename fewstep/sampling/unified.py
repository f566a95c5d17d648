"""The unified step: kind of prediction, Taylor order and estimate of the derivatives, chosen for each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import SymbolicPrediction, Trace, Value
from fewstep.sampling.common import Point, ddim, gauss

METHODS = (
    Method(
        "unified",
        paper="A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models (Liu et al., 2024)",
        arxiv="2312.07243",
        claim="kind, Taylor order and derivative estimate chosen for each step; order 2 by default",
        use="unified",
        facts={"order": 2},
    ),
)

KINDS = ("eps", "x0")
ORDERS = (1, 2, 3)
ESTIMATES = ("full", "low", "middle", "inside")


class Choice(NamedTuple):
    """One step: which prediction is expanded in log-SNR, to which order, and where its derivatives come from.

    "full": the derivatives of the polynomial through the last `order` predictions. "low": each derivative from as few
    of them as it takes, the k-th from k + 1. "middle": that polynomial's value in the middle of the step, held for all
    of it. "inside": from order - 1 evaluations more inside the step. Order 1 is the same under each.
    """

    kind: str
    order: int
    estimate: str


DEFAULT = Choice("x0", 2, "middle")


def evaluations(choice: Choice) -> int:
    """The evaluations of a step that neither starts at alpha = 0 nor ends at sigma = 0 (those take one)."""
    return choice.order if choice.estimate == "inside" else 1


def _checked(schedule: Sequence[Sequence[object]] | None, steps: int) -> list[Choice]:
    if schedule is None:
        return [DEFAULT] * steps
    choices = []
    for entry in schedule:
        if isinstance(entry, str) or len(entry) != 3:
            raise ValueError(f"a choice is (kind, order, estimate), such as {tuple(DEFAULT)}, got {entry!r}")
        kind, order, estimate = entry
        if kind not in KINDS:
            raise suggest("kind of prediction", kind, KINDS)
        if order not in ORDERS or isinstance(order, bool):
            raise ValueError(f"the Taylor order is 1, 2 or 3, got {order!r}")
        if estimate not in ESTIMATES:
            raise suggest("estimate", estimate, ESTIMATES)
        choices.append(Choice(str(kind), int(str(order)), str(estimate)))
    if len(choices) == 1:
        return choices * steps
    if len(choices) != steps:
        raise ValueError(f"{len(choices)} choices for {steps} steps: give one for each, or one for all")
    return choices


def _moments(process: Process, kind: str, a: float, b: float, order: int) -> tuple[float, list[float]]:
    """`x_b = A x_a + sum_k M_k f^(k)(lambda_a)`: A and M, k = 0 ... order - 1, lambda the log-SNR.

    `M_k` is the integral of `(lambda - lambda_a)^k / k!` against `-sigma_b e^(lambda_b - lambda)` for eps, against
    `alpha_b e^(lambda - lambda_b)` for x0: h^(k + 1) phi_(k + 1) of the exponential integrators.
    """
    h = process.log_snr(b) - process.log_snr(a)
    points, weights = gauss(32)
    if kind == "eps":
        carry = process.alpha(b) / process.alpha(a)
        measure = -process.sigma(b) * np.exp(h * (1 - points))
    else:
        carry = process.sigma(b) / process.sigma(a)
        measure = process.alpha(b) * np.exp(h * (points - 1))
    return carry, [float(h * np.sum(weights * measure * (h * points) ** k)) / math.factorial(k) for k in range(order)]


def derivatives(offsets: Sequence[float], estimate: str) -> np.ndarray:
    """`(n, n)`: row k gives the k-th derivative at offset 0 from values at `offsets`, whose first is 0, newest first.

    Solves the Taylor system `f_j = sum_k offset_j^k / k! f^(k)` of all n values ("full"), or for row k that of the
    first k + 1 alone ("low").
    """
    n = len(offsets)
    taylor = np.array([[offset**k / math.factorial(k) for k in range(n)] for offset in offsets])
    if estimate == "full":
        return np.linalg.inv(taylor)
    rows = np.zeros((n, n))
    for k in range(n):
        rows[k, : k + 1] = np.linalg.inv(taylor[: k + 1, : k + 1])[k]
    return rows


def _sum(x: Value, carry: float, weights: Sequence[float], values: Sequence[Value]) -> Value:
    value = x * carry
    for weight, one in zip(weights, values, strict=True):
        value = value + one * float(weight)
    return value


def _multistep(process: Process, x: Value, a: float, b: float, points: Sequence[Point], choice: Choice) -> Value:
    """From known predictions, the newest last and at a."""
    known = [point for point in points if process.alpha(point[0]) > 0][-choice.order :][::-1]
    start = process.log_snr(a)
    offsets = [process.log_snr(t) - start for t, _ in known]
    carry, moments = _moments(process, choice.kind, a, b, len(known))
    if choice.estimate == "middle":
        h = process.log_snr(b) - start
        at = np.array([(0.5 * h) ** k / math.factorial(k) for k in range(len(known))])
        weights = moments[0] * (at @ derivatives(offsets, "full"))
    else:
        weights = np.array(moments) @ derivatives(offsets, choice.estimate)
    return _sum(x, carry, list(weights), [getattr(prediction, choice.kind) for _, prediction in known])


def _single_step(
    trace: Trace, process: Process, x: Value, a: float, b: float, newest: SymbolicPrediction, choice: Choice
) -> Value:
    """DPM-Solver's stages: the middle for order 2; a third and two thirds of the step for order 3."""
    kind, start = choice.kind, process.log_snr(a)
    h = process.log_snr(b) - start
    first = getattr(newest, kind)
    s = process.time(start + h / choice.order)
    carry, moments = _moments(process, kind, a, s, 1)
    inner = getattr(trace.evaluate(_sum(x, carry, moments, [first]), s), kind)
    if choice.order == 3:
        r = process.time(start + h * 2 / 3)
        carry, moments = _moments(process, kind, a, r, 2)
        slope = (inner - first) / (h / 3)
        inner = getattr(trace.evaluate(_sum(x, carry, moments, [first, slope]), r), kind)
        carry, moments = _moments(process, kind, a, b, 2)
        return _sum(x, carry, moments, [first, (inner - first) / (h * 2 / 3)])
    carry, moments = _moments(process, kind, a, b, 1)
    return _sum(x, carry, moments, [inner])


def unified(
    trace: Trace, process: Process, times: Sequence[float], schedule: Sequence[Sequence[object]] | None = None
) -> Value:
    """An exponential Taylor step with choices of its own for every step (Liu et al., section 3).

    Steps from alpha = 0 or to sigma = 0 have no length in log-SNR: they are of first order, with one evaluation. A step
    that needs more predictions than there are so far uses those there are. Evaluations inside a step serve that step
    alone: they are made at states of lower order.

    Uniform schedules are known solvers: order 1 is `ddim`; `(kind, 2, "full")` is `ab-2` and `ab-x0-2`;
    ("x0", 2, "middle"), the default, is `dpmpp-2m`; ("eps", p, "inside") is `dpm-solver-p`, ("x0", 2, "inside")
    `dpmpp-2s`. Order 3 over the known predictions starts as it can, with orders 1 and 2: so the whole is of order 2,
    unless the first two steps are ("eps" or "x0", 3, "inside").

    Args:
        schedule: a `Choice` (kind, order, estimate) for each step, or one for all.

    Raises:
        ValueError: a choice that does not exist, or a number of choices other than that of the steps.
    """
    choices = _checked(schedule, len(times) - 1)
    x = trace.start()
    points: list[Point] = []
    for (a, b), choice in zip(pairwise(times), choices, strict=True):
        prediction = trace.evaluate(x, a)
        points = [*points[-2:], (a, prediction)]
        if choice.order == 1 or process.alpha(a) == 0 or process.sigma(b) == 0:
            x = ddim(process, x, a, b, prediction)
        elif choice.estimate == "inside":
            x = _single_step(trace, process, x, a, b, prediction, choice)
        else:
            x = _multistep(process, x, a, b, points, choice)
    return x
