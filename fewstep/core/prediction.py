"""What a denoiser predicts, and one table that converts each kind into every other.

Each kind is a combination `a x0 + b eps` of the clean sample and the noise, as is the state itself
(`x = alpha x0 + sigma eps`). Two such pairs determine a third, so every conversion is `P x + Q value`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.process import Process

Number = TypeVar("Number", float, Tensor)

KINDS = ("x0", "eps", "v", "velocity", "score", "flow")


def coefficients(
    kind: str | tuple[Number, Number], alpha: Number, sigma: Number, dalpha: Number, dsigma: Number
) -> tuple[Number, Number]:
    """`(a, b)` with `value = a x0 + b eps`, by the name of the kind; the pair itself stands for a kind without a name.

    x0 (1, 0); eps (0, 1); v (-sigma, alpha) (Salimans & Ho, 2022); velocity (alpha', sigma'), which is `eps - x0` for
    the rectified flow; score (0, -1/sigma), infinite at sigma = 0; flow (-1, 1), the rectified flow's velocity
    `eps - x0` under any process.
    """
    if isinstance(kind, tuple):
        return kind
    one, zero = alpha * 0 + 1, alpha * 0
    if kind == "x0":
        return one, zero
    if kind == "eps":
        return zero, one
    if kind == "v":
        return -sigma, alpha
    if kind == "velocity":
        return dalpha, dsigma
    if kind == "score":
        return zero, -1 / sigma
    if kind == "flow":
        return -one, one
    raise suggest("prediction kind", kind, KINDS)


def conversion(
    source: str | tuple[Number, Number],
    target: str | tuple[Number, Number],
    alpha: Number,
    sigma: Number,
    dalpha: Number,
    dsigma: Number,
) -> tuple[Number, Number]:
    """`(P, Q)` with `target = P x + Q source`: the solution of `P (alpha, sigma) + Q (a_s, b_s) = (a_t, b_t)`.

    Both are kinds by name, or pairs `(a, b)` of numbers of the type of alpha.
    """
    if source == target:
        return alpha * 0, alpha * 0 + 1
    if source == "score" or target == "score":  # through eps = -sigma score: finite at sigma = 0 towards eps
        if source == "score":
            p, q = conversion("eps", target, alpha, sigma, dalpha, dsigma)
            return p, -sigma * q
        p, q = conversion(source, "eps", alpha, sigma, dalpha, dsigma)
        return -p / sigma, -q / sigma
    a_s, b_s = coefficients(source, alpha, sigma, dalpha, dsigma)
    a_t, b_t = coefficients(target, alpha, sigma, dalpha, dsigma)
    det = alpha * b_s - sigma * a_s
    return (a_t * b_s - b_t * a_s) / det, (alpha * b_t - sigma * a_t) / det


def scales(process: Process, t: Number) -> tuple[Number, Number, Number, Number]:
    """alpha, sigma and their derivatives at t."""
    return process.alpha(t), process.sigma(t), process.dalpha(t), process.dsigma(t)


def expand(t: Tensor, like: Tensor) -> Tensor:
    """A scalar or `(B,)` tensor shaped to broadcast against `(B, *shape)`, in its dtype.

    What a process of several noise levels gives, `(1, *shape)` or `(B, *shape)`, stays as it is.
    """
    t = t.to(like.dtype)
    return t.reshape(-1, *[1] * (like.ndim - 1)) if t.ndim == 1 else t


@dataclass(slots=True)
class Prediction:
    """One tensor and what it stands for: `value` `(B, *shape)` is of `kind`, predicted at state `x` and time `t`.

    `.x0 .eps .v .velocity .score` convert; for its own kind that is free and exact. The formulas are `conversion`'s,
    with coefficients in float64, applied in the value's dtype.
    """

    value: Tensor
    kind: str
    x: Tensor
    t: Tensor
    process: Process

    def replaced(self, value: Tensor, **changes: Any) -> Prediction:
        """The same answer with another value: its class and its other fields stay."""
        return replace(self, value=value, **changes)

    def part(self, rows: slice | Tensor) -> Self:
        """The answer for some of its samples, `rows` a slice or indices; its other fields go with them."""
        return replace(self, **{name: tensor[rows] for name, tensor in self._rows().items()})

    def _rows(self) -> dict[str, Any]:
        """The fields that hold a row for each sample."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        n = self.value.shape[0]  # len() would fix an exported program's batch
        return {name: v for name, v in found.items() if isinstance(v, Tensor) and v.ndim > 0 and v.shape[0] == n}

    def beside(self) -> dict[str, Tensor]:
        """What the answer holds for each sample besides its value, by name; nothing, of most."""
        own = {field.name for field in fields(Prediction)}
        return {name: tensor for name, tensor in self._rows().items() if name not in own}

    def to(self, kind: str) -> Tensor:
        if kind == self.kind:
            return self.value
        p, q = conversion(self.kind, kind, *scales(self.process, self.t))
        return expand(p, self.x) * self.x + expand(q, self.x) * self.value

    @property
    def x0(self) -> Tensor:
        return self.to("x0")

    @property
    def eps(self) -> Tensor:
        return self.to("eps")

    @property
    def v(self) -> Tensor:
        return self.to("v")

    @property
    def velocity(self) -> Tensor:
        return self.to("velocity")

    @property
    def score(self) -> Tensor:
        return self.to("score")


def joined(parts: Sequence[tuple[Tensor, Prediction]], x: Tensor, t: Tensor) -> Prediction:
    """One answer for x `(B, *shape)` from answers for parts of it: pairs of the samples' indices and the answer.

    It is of the first part's kind and, where all parts are of one class, of that class with its further fields.
    """
    order, first = torch.cat([rows for rows, _ in parts]), parts[0][1]

    def whole(of: Callable[[Prediction], Tensor]) -> Tensor:
        rows = torch.cat([of(part) for _, part in parts])
        return torch.empty_like(rows).index_copy(0, order, rows)

    value = whole(lambda part: part.to(first.kind).to(x.dtype))
    if any(type(part) is not type(first) for _, part in parts):
        return Prediction(value, first.kind, x, t, first.process)
    extras: dict[str, Any] = {name: whole(attrgetter(name)) for name in first.beside()}
    return replace(first, value=value, x=x, t=t, **extras)
