"""The symbolic trace: a solver, written as its paper writes it, recorded once as a straight-line program.

A `Value` is a linear combination of slots, with float64 coefficients. Slots are made by the start, by evaluations, by
noise and by combinations. Evaluating a value gives it a slot of its own (the network must see it); so does `keep`.
Everything else stays an expression, so a state that is corrected but never evaluated must be kept, or its expression
unrolls to the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fewstep.core.ops import Combine, Draw, Evaluate, Op
from fewstep.core.prediction import KINDS, scales
from fewstep.core.process import Process

Solver = Callable[..., "Value"]


class Value:
    """A linear combination of slots: supports `+ - *` with values and floats, and `/` by a float."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[int, float]):
        self.terms = terms

    def __add__(self, other: Value | float) -> Value:
        if not isinstance(other, Value):
            if other == 0:  # so that sum() works
                return self
            raise TypeError("a symbolic value is linear: it cannot be added to a number")
        terms = dict(self.terms)
        for slot, c in other.terms.items():
            terms[slot] = terms.get(slot, 0.0) + c
        return Value(terms)

    __radd__ = __add__

    def __mul__(self, c: float) -> Value:
        return Value({slot: float(c) * value for slot, value in self.terms.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Value:
        return self * -1.0

    def __sub__(self, other: Value) -> Value:
        return self + other * -1.0

    def __truediv__(self, c: float) -> Value:
        return self * (1.0 / c)


class SymbolicPrediction:
    """What an evaluation returns: `.x0`, `.eps`, `.v`, `.velocity`, `.score`, each a `Value`.

    Each kind that is asked for becomes a slot of its own, converted when the network answers, so that neither x0 at
    alpha = 0 nor eps at sigma = 0 is computed by a difference.
    """

    def __init__(self, trace: Trace, outputs: dict[str, int]):
        self._trace, self._outputs = trace, outputs

    def __getattr__(self, kind: str) -> Value:
        if kind not in KINDS:
            raise AttributeError(kind)
        if kind not in self._outputs:
            self._outputs[kind] = self._trace._slot()
        return Value({self._outputs[kind]: 1.0})


@dataclass(frozen=True)
class _Asked:
    """An evaluation while the solver may still request further kinds of its prediction."""

    x: int
    t: float
    outputs: dict[str, int]
    given: dict[str, float]
    latent: int | None


class Trace:
    """Records what a solver does. The solver calls `start, evaluate, keep, noise` and returns the final value."""

    def __init__(self, process: Process):
        self.process = process
        self._ops: list[_Asked | Combine | Draw] = []
        self._slots = 1  # slot 0 is the start
        self._draws = 0
        self._states = {0}  # slots the network can be fed: the start and combinations

    def _slot(self) -> int:
        self._slots += 1
        return self._slots - 1

    def start(self) -> Value:
        """The initial state, at the first time of the grid."""
        return Value({0: 1.0})

    def keep(self, value: Value) -> Value:
        """Give a value a slot of its own; the value itself is from now on that slot."""
        if list(value.terms.values()) == [1.0] and self._states.issuperset(value.terms):
            return value
        slot = self._slot()
        self._states.add(slot)
        self._ops.append(Combine(slot, tuple(value.terms.items())))
        value.terms = {slot: 1.0}
        return value

    def evaluate(self, x: Value, t: float, *, latent: Value | None = None, **given: float) -> SymbolicPrediction:
        """One network evaluation at state x and process time t; `given` are numbers for the network there, `latent` is
        a draw for it (`noise`)."""
        self.keep(x)
        (slot,) = x.terms
        drawn = None
        if latent is not None:
            (drawn,) = latent.terms
        outputs: dict[str, int] = {}
        told = {name: float(value) for name, value in given.items()}
        self._ops.append(_Asked(slot, float(t), outputs, told, drawn))
        return SymbolicPrediction(self, outputs)

    def noise(self, a: float | None = None, b: float | None = None) -> Value:
        """Fresh standard normal noise; with times, that of the reverse SDE's step from a to b."""
        self._draws += 1
        slot = self._slot()
        self._ops.append(Draw(slot, self._draws, None if a is None or b is None else (float(a), float(b))))
        return Value({slot: 1.0})

    def program(self, result: Value) -> tuple[tuple[Op, ...], int]:
        """The recorded operations, and the slot of the result."""
        self.keep(result)
        ops: list[Op] = []
        for op in self._ops:
            if isinstance(op, _Asked):
                outputs = tuple(op.outputs.items())
                levels = scales(self.process, op.t)
                ops.append(Evaluate(op.x, op.t, outputs, levels, tuple(op.given.items()), op.latent))
            else:
                ops.append(op)
        (slot,) = result.terms
        return tuple(ops), slot
