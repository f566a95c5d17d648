"""Forecasts of what an evaluation would have said, from what the last ones said: polynomials in log-SNR."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import KINDS, Number, coefficients, expand, scales
from fewstep.core.process import Process

FAR = 20.0  # pure noise and clean samples, whose log-SNR is infinite, count as this far
OWN = "own"  # the coordinate in which EDM's networks answer


def level(process: Process, t: float) -> float:
    """The log-SNR `log(alpha / sigma)` at a time, no further from 0 than `FAR`."""
    return min(max(float(process.log_snr(t)), -FAR), FAR)


def lagrange(nodes: Sequence[float], at: float) -> list[float]:
    """The weights of values at distinct nodes in the polynomial through them, at another place.

    One node is reuse, k of them a polynomial of degree k - 1.
    """
    return [math.prod((at - other) / (node - other) for other in nodes if other != node) for node in nodes]


def pair(
    name: str, alpha: Number, sigma: Number, dalpha: Number, dsigma: Number, data_std: float
) -> tuple[Number, Number]:
    """`(a, b)` of a coordinate `a x0 + b eps`: a kind of prediction or "own".

    "own" is the output F of Karras et al.'s preconditioned network (2206.00364, table 1) for data of standard deviation
    s, whatever the network answers: from `x0 = alpha s^2 / n^2 x + sigma s / n F` with `n^2 = sigma^2 + alpha^2 s^2`
    follows `F = (sigma x0 / s - alpha s eps) / n`, which is -v where s = 1.
    """
    if name != OWN:
        return coefficients(name, alpha, sigma, dalpha, dsigma)
    norm = (sigma**2 + (alpha * data_std) ** 2) ** 0.5
    return sigma / (data_std * norm), -alpha * data_std / norm


def change(
    source: tuple[Number, Number], target: tuple[Number, Number], alpha: Number, sigma: Number
) -> tuple[Number, Number]:
    """`(P, Q)` with `target = P x + Q source` at the state `x = alpha x0 + sigma eps`, of pairs as `pair` gives."""
    (a_s, b_s), (a_t, b_t) = source, target
    det = alpha * b_s - sigma * a_s
    return (a_t * b_s - b_t * a_s) / det, (alpha * b_t - sigma * a_t) / det


COORDINATES = (OWN, *KINDS)


def tells(process: Process, kind: str, t: float) -> bool:
    """Whether an answer of this kind has a finite value in every coordinate: eps has none at alpha = 0."""
    alpha, sigma, dalpha, dsigma = (float(number) for number in scales(process, t))
    a, b = coefficients(kind, alpha, sigma, dalpha, dsigma) if kind != "score" else (0.0, 1.0)
    return abs(alpha * b - sigma * a) > 1e-12


def changed(value: Tensor, source: str, target: str, x: Tensor, t: Tensor, model: Denoiser) -> Tensor:
    """A value at the state x `(B, *shape)` and time t in another coordinate."""
    if source == target:
        return value
    alpha, sigma, dalpha, dsigma = scales(model.process, t.double())
    data_std = getattr(model, "data_std", None) or 1.0
    one, other = (pair(name, alpha, sigma, dalpha, dsigma, data_std) for name in (source, target))
    p, q = change(one, other, alpha, sigma)
    return torch.addcmul(expand(p, x) * x, expand(q, x), value)


def weighted(values: Sequence[Tensor], weights: Sequence[float] | Tensor) -> Tensor:
    """The sum of values `(rows, ...)` under weights, one each or `(rows, k)` for rows of their own."""
    total: Tensor | None = None
    for k, value in enumerate(values):
        if isinstance(weights, Tensor):
            w = weights[:, k].view(-1, *[1] * (value.ndim - 1))
            total = w * value if total is None else total.addcmul_(w, value)
        else:
            total = weights[k] * value if total is None else total.add_(value, alpha=weights[k])
    assert total is not None
    return total
