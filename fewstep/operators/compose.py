"""Operators made of others: one after another, multiples, sums, and several measurements of the same sample."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.methods import Method
from fewstep.core.spelling import spelt_value
from fewstep.operators.operator import LinearOperator, Operator
from fewstep.operators.spectrum import Spectrum

METHODS = (
    Method(
        "composed",
        claim="linear operators one after another, the last of the list first",
        use="Composed",
        facts={"of": "operators"},
    ),
    Method(
        "chained",
        claim="any operators one after another, the last of the list first",
        use="Chained",
        facts={"of": "operators"},
    ),
    Method("scaled", claim="a multiple of an operator", use="Scaled"),
    Method("added", claim="the sum of two operators' measurements", use="Added", facts={"of": "operators"}),
    Method(
        "stack",
        claim="several measurements of one sample, one after another as a vector",
        use="Stack",
        facts={"of": "operators"},
    ),
)


def _linear(operators: tuple[Operator, ...], what: str) -> list[LinearOperator]:
    if not operators:
        raise ValueError(f"a {what} needs at least one operator")
    for one in operators:
        if not isinstance(one, LinearOperator):
            raise ValueError(f"a {what} takes linear operators, and {one} is none")
    return list(operators)  # type: ignore[arg-type]  # looked at above


def _opened(operators: tuple[Operator, ...]) -> tuple[Operator, ...]:
    """Operators one after another, with those that are compositions themselves opened."""
    flat: list[Operator] = []
    for one in operators:
        flat += one.parts if isinstance(one, Composed | Chained) else [one]  # type: ignore[arg-type]
    return tuple(flat)


class _Of(Operator):
    """An operator of others, which are its `parts`."""

    parts: nn.ModuleList

    def config(self) -> dict[str, Any]:
        return {"operators": list(self.parts)}

    @classmethod
    def from_config(cls, options: dict[str, Any], state: Any = None) -> Operator:
        return cls(*options["operators"])


class _InTurn(_Of):
    """Operators one after another, the last of the parts first."""

    @property
    def holds(self) -> Tensor | None:
        return self.parts[0].holds  # type: ignore[return-value, union-attr]

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for part in reversed(self.parts):
            assert isinstance(part, Operator)
            shape = part.measured(shape)
        return shape

    def act(self, x: Tensor) -> Tensor:
        for part in reversed(self.parts):
            x = part(x)
        return x

    def __str__(self) -> str:
        return " @ ".join(f"({part})" if isinstance(part, Added) else str(part) for part in self.parts)


class Chained(_InTurn):
    """`A(B(...(x)))`, of which one at least is not linear: `A @ B` is `Chained(A, B)`."""

    def __init__(self, *operators: Operator):
        super().__init__()
        self.parts = nn.ModuleList(_opened(operators))


class Composed(_InTurn, LinearOperator):
    """`A B ... x`, linear: `Composed(A, B)` is `A @ B`."""

    def __init__(self, *operators: Operator):
        super().__init__()
        self.parts = nn.ModuleList(_linear(_opened(operators), "composition"))

    def transpose(self, y: Tensor) -> Tensor:
        for part in self.parts:
            assert isinstance(part, LinearOperator)
            y = part.adjoint(y)
        return y

    def along(self) -> tuple[Tensor | None, ...] | None:
        whole: list[Tensor | None] = []
        for part in reversed(self.parts):
            assert isinstance(part, LinearOperator)
            own = part.along()
            if own is None or (whole and len(own) != len(whole)):
                return None
            before = whole or [None] * len(own)
            whole = [
                a if b is None else b if a is None else a @ b.to(a.device) for a, b in zip(own, before, strict=True)
            ]
        return tuple(whole)


class Scaled(LinearOperator):
    """`c A x`. c: a finite number that is not 0."""

    def __init__(self, operator: Operator, factor: float):
        super().__init__()
        (self.operator,) = _linear((operator,), "multiple")
        if not math.isfinite(factor) or factor == 0:
            raise ValueError(f"a multiple of an operator needs a finite factor other than 0, got {factor}")
        self.factor = float(factor)

    @property
    def holds(self) -> Tensor | None:
        return self.operator.holds

    def config(self) -> dict[str, Any]:
        return {"operator": self.operator, "factor": self.factor}

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.operator.measured(shape)

    def act(self, x: Tensor) -> Tensor:
        return self.factor * self.operator(x)

    def transpose(self, y: Tensor) -> Tensor:
        return self.factor * self.operator.adjoint(y)

    def along(self) -> tuple[Tensor | None, ...] | None:
        own = self.operator.along()
        if own is None or own[0] is None:
            return None
        return (self.factor * own[0], *own[1:])

    def find_spectrum(self) -> Spectrum | None:
        own = self.operator.spectrum()
        if self.factor < 0 or own is None:
            return super().find_spectrum()
        made = copy.copy(own)
        made._buffers = own._buffers | {"values": own.values * self.factor}
        return made

    def __str__(self) -> str:
        inner = f"({self.operator})" if isinstance(self.operator, Added | Composed | Scaled) else str(self.operator)
        return f"{spelt_value(self.factor)} {inner}"


class Added(_Of, LinearOperator):
    """`A x + B x`, of measurements of one shape."""

    def __init__(self, *operators: Operator):
        super().__init__()
        self.parts = nn.ModuleList(_linear(operators, "sum"))

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        shapes = [part.measured(shape) for part in self.parts]  # type: ignore[operator, union-attr]
        if len(set(shapes)) > 1:
            raise ValueError(f"a sum takes measurements of one shape, got {' and '.join(map(str, shapes))}")
        return shapes[0]  # type: ignore[no-any-return]

    def act(self, x: Tensor) -> Tensor:
        return sum((part(x) for part in self.parts[1:]), self.parts[0](x))

    def transpose(self, y: Tensor) -> Tensor:
        back: list[Tensor] = [part.adjoint(y) for part in self.parts]  # type: ignore[operator, union-attr]
        return sum(back[1:], back[0])

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))


class Stack(_Of, LinearOperator):
    """Several measurements of the same sample, `(B, m_1 + m_2 + ...)`, one after another."""

    def __init__(self, *operators: Operator):
        super().__init__()
        self.parts = nn.ModuleList(_linear(operators, "stack"))

    @property
    def holds(self) -> Tensor | None:
        parts: list[LinearOperator] = list(self.parts)  # type: ignore[arg-type]
        held = [part.holds for part in parts]
        if all(one is None for one in held):
            return None
        flat = [
            torch.ones(part.out, dtype=torch.bool) if one is None else one
            for one, part in zip(held, parts, strict=True)
        ]
        return torch.cat([one.flatten() for one in flat])

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        shapes: list[tuple[int, ...]] = [part.measured(shape) for part in self.parts]  # type: ignore[operator, union-attr]
        return (sum(map(math.prod, shapes)),)

    def act(self, x: Tensor) -> Tensor:
        return torch.cat([part(x).flatten(1) for part in self.parts], 1)

    def split(self, y: Tensor) -> list[Tensor]:
        """The measurements of each, in their own shapes."""
        shapes: list[tuple[int, ...]] = [part.out for part in self.parts]  # type: ignore[misc]
        pieces = y.split([math.prod(shape) for shape in shapes], 1)
        return [piece.reshape(-1, *shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def transpose(self, y: Tensor) -> Tensor:
        parts = zip(self.parts, self.split(y), strict=True)
        back: list[Tensor] = [part.adjoint(own) for part, own in parts]  # type: ignore[operator, union-attr]
        return sum(back[1:], back[0])

    def __str__(self) -> str:
        return f"stack({', '.join(map(str, self.parts))})"
