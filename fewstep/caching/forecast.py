"""Forecasts of what an evaluation would have said, from what the last ones said: polynomials in log-SNR.

In a coordinate F, and at the log-SNR u of an evaluation that is not made, the forecast is `sum_j w_j F_j` over the last
k evaluations that were: the value there of the polynomial of degree k - 1 through them (`core.lagrange`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.lagrange import lagrange
from fewstep.core.prediction import KINDS, Number
from fewstep.core.process import Process

OWN = "own"  # the coordinate in which EDM's networks answer
COORDINATES = (OWN, *(kind for kind in KINDS if kind != "score"))
FURTHEST = 5.0  # of the noise level that a network is told
Coordinate = str | tuple[Number, Number]
Node = tuple[int, float]  # an evaluation that was made: its number and its log-SNR


def check_coordinate(coordinate: str, data_std: float | None) -> float:
    """The standard deviation of the data for a coordinate; `ValueError` for an unknown one or a number that is none."""
    if coordinate not in COORDINATES:
        raise suggest("coordinate", coordinate, COORDINATES)
    if data_std is not None and not 0 < data_std < math.inf:
        raise ValueError(f"data_std must be positive and finite, got {data_std}")
    return 1.0 if data_std is None else float(data_std)


def coordinate_at(coordinate: str, alpha: Number, sigma: Number, data_std: float) -> Coordinate[Number]:
    """A coordinate at a noise level as `conversion` takes it: the kind's name, or for "own" (a, b) of `a x0 + b eps`.

    With `n = sqrt(sigma^2 + alpha^2 s^2)` these are `(sigma / (s n), -alpha s / n)`: what EDM's preconditioning
    `x0 = alpha s^2 / n^2 x + sigma s / n F` (Karras et al., 2022, Table 1) leaves for F. That is -v where s = 1.
    """
    if coordinate != OWN:
        return coordinate
    norm = (sigma**2 + (alpha * data_std) ** 2) ** 0.5
    return sigma / (data_std * norm), -alpha * data_std / norm


def level(process: Process, t: float) -> float:
    """The log-SNR `log(alpha / sigma)` at a time, infinite for pure noise and clean samples."""
    return float(process.log_snr(t))


def told(process: Process, t: float) -> float:
    """The noise level as a network gets it: log(sigma / alpha) / 4, within -5 to 5."""
    return min(max(-level(process, t) / 4, -FURTHEST), FURTHEST)


def nodes(before: Sequence[Node], at: float, order: int) -> list[Node]:
    """Of the evaluations made before, oldest first, those that a forecast at a log-SNR goes through, newest first.

    At most `order`, at different log-SNRs, of which the newest counts. Infinite ones are left out, and where nothing
    else is there, or `at` itself is infinite, the last evaluation is used again.
    """
    found: list[Node] = []
    if order > 1 and math.isfinite(at):
        for node in reversed(before):
            if math.isfinite(node[1]) and all(node[1] != other for _, other in found):
                found.append(node)
    return found[:order] or [before[-1]]


def weights(through: Sequence[Node], at: float) -> list[float]:
    """The weights of the answers at nodes in their forecast."""
    return lagrange([snr for _, snr in through], at)


def weighted(values: Sequence[Tensor], by: Sequence[float] | Tensor) -> Tensor:
    """The sum of values `(rows, ...)` under weights, one each or `(rows, k)` for rows of their own."""
    total: Tensor | None = None
    for k, value in enumerate(values):
        if isinstance(by, Tensor):
            w = by[:, k].view(-1, *[1] * (value.ndim - 1))
            total = w * value if total is None else total.addcmul_(w, value)
        else:
            total = by[k] * value if total is None else total.add_(value, alpha=by[k])
    assert total is not None
    return total
