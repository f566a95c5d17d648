"""Answers changed in another kind of prediction, and sums over each sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.core.prediction import Prediction, conversion, expand, scales

_LEAST = 1e-6  # of alpha and sigma


def through(change: Callable[[Tensor], Tensor], answer: Prediction, kind: str) -> Tensor:
    """An answer's value, changed in another kind and brought back to its own.

    alpha and sigma count as 1e-6 at least, so that what is finite stays finite where one of them is 0; a change that
    scales with its argument has its right limit there.
    """
    if kind == answer.kind:
        return change(answer.value)
    changed = change(into(kind, answer))
    p, q = _conversion(answer, kind, answer.kind)
    return expand(p, answer.x) * answer.x + expand(q, answer.x) * changed


def into(kind: str, answer: Prediction) -> Tensor:
    """An answer in another kind, finite as in `through`."""
    if kind == answer.kind:
        return answer.value
    p, q = _conversion(answer, answer.kind, kind)
    return expand(p, answer.x) * answer.x + expand(q, answer.x) * answer.value


def _conversion(answer: Prediction, source: str, target: str) -> tuple[Tensor, Tensor]:
    alpha, sigma, dalpha, dsigma = scales(answer.process, answer.t.double())
    most = 1 / _LEAST
    return conversion(
        source,
        target,
        alpha.clamp_min(_LEAST),
        sigma.clamp_min(_LEAST),
        dalpha.clamp(-most, most),
        dsigma.clamp(-most, most),
    )


def norm(x: Tensor) -> Tensor:
    """Of each sample, shaped to multiply x; at least the smallest normal number."""
    flat = x.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    return flat.reshape(-1, *[1] * (x.ndim - 1))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, shaped to multiply them."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))
