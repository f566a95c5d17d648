"""Answers changed in another kind of prediction, and sums over each sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.core.prediction import Prediction, conversion, expand, scales
from fewstep.core.process import Process

_LEAST = 1e-6  # of alpha and sigma


def through(change: Callable[[Tensor], Tensor], answer: Prediction, kind: str) -> Tensor:
    """An answer's value, changed in another kind and brought back to its own.

    alpha and sigma count as 1e-6 at least, so that what is finite stays finite where one of them is 0; a change that
    scales with its argument has its right limit there.
    """
    if kind == answer.kind:
        return change(answer.value)
    changed = change(into(kind, answer))
    p, q = finite(answer.process, answer.t, kind, answer.kind)
    return expand(p, answer.x) * answer.x + expand(q, answer.x) * changed


def into(kind: str, answer: Prediction) -> Tensor:
    """An answer in another kind, finite as in `through`."""
    if kind == answer.kind:
        return answer.value
    p, q = finite(answer.process, answer.t, answer.kind, kind)
    return expand(p, answer.x) * answer.x + expand(q, answer.x) * answer.value


def finite(process: Process, t: Tensor, source: str, target: str) -> tuple[Tensor, Tensor]:
    """`core.prediction.conversion` with alpha and sigma of 1e-6 at least, and slopes of 1e6 at most."""
    alpha, sigma, dalpha, dsigma = scales(process, t.double())
    rates = dalpha.clamp(-1 / _LEAST, 1 / _LEAST), dsigma.clamp(-1 / _LEAST, 1 / _LEAST)
    return conversion(source, target, alpha.clamp_min(_LEAST), sigma.clamp_min(_LEAST), *rates)


def norm(x: Tensor) -> Tensor:
    """Of each sample, shaped to multiply x; at least the smallest normal number."""
    flat = x.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    return flat.reshape(-1, *[1] * (x.ndim - 1))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, shaped to multiply them."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))
