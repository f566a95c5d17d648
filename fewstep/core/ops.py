"""The three operations of a plan, their JSON, and what a program of them must satisfy.

Numbers of a program are floats, or tuples with one float per band for a process whose noise level differs from element
to element (core/bands.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.prediction import KINDS, conversion

Number = float | tuple[float, ...]
Scales = tuple[Number, Number, Number, Number]


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the denoiser on slot `x` at time `t`; `outputs` are the (kind, slot) pairs wanted.

    `scales` are alpha, sigma and their derivatives at t, for the conversion of whatever kind the denoiser predicts.
    `given` are numbers that the plan passes to the network at this evaluation, as conditions: `(("guidance", 2.0),)`.
    `latent` is the slot of a draw that it gets as the condition of that name, or None.
    """

    x: int
    t: float
    outputs: tuple[tuple[str, int], ...]
    scales: Scales
    given: tuple[tuple[str, float], ...] = ()
    latent: int | None = None


@dataclass(frozen=True)
class Combine:
    """Slot = sum of coefficient times slot."""

    slot: int
    terms: tuple[tuple[int, Number], ...]


@dataclass(frozen=True)
class Draw:
    """Slot = standard normal noise, draw number `draw` of the sample's stream.

    `span` are the times between which the step adds it, where it is a stretch of the reverse SDE's Brownian path.
    """

    slot: int
    draw: int
    span: tuple[float, float] | None = None


Op = Evaluate | Combine | Draw


@dataclass(frozen=True)
class Spread:
    """Which band each element of a sample of `shape` belongs to, row by row."""

    index: tuple[int, ...]
    shape: tuple[int, ...]
    bands: int

    def __post_init__(self) -> None:
        if len(self.index) != math.prod(self.shape) or not all(0 <= i < self.bands for i in self.index):
            raise ValueError(
                f"{self.bands} bands, {len(self.index)} elements and shape {self.shape} do not fit each other"
            )

    def elements(self, numbers: Sequence[Number]) -> Tensor:
        """Each number as a coefficient of every element: `(n, 1, *shape)`, float64, on the CPU."""
        columns = [n if isinstance(n, tuple) else (n,) * self.bands for n in numbers]
        values = torch.tensor(columns, dtype=torch.float64).reshape(len(columns), self.bands)
        return values[:, torch.tensor(self.index)].reshape(len(columns), 1, *self.shape)


def per_band(numbers: Sequence[float]) -> Number:
    """The numbers of the bands as one number of a program: a float where they are all equal."""
    return numbers[0] if all(n == numbers[0] for n in numbers) else tuple(numbers)


def in_band(number: Number, band: int) -> float:
    """A number's value in a band."""
    return number[band] if isinstance(number, tuple) else number


def one_level(number: Number) -> float:
    """The number, which must be a float; `ValueError` for one that differs from band to band."""
    if isinstance(number, tuple):
        raise ValueError("this needs a plan with one noise level for all elements, and this one has bands of them")
    return number


def plus(a: Number, b: Number) -> Number:
    if isinstance(a, tuple) or isinstance(b, tuple):
        return per_band([in_band(a, k) + in_band(b, k) for k in range(_bands(a, b))])
    return a + b


def times(a: Number, b: Number) -> Number:
    if isinstance(a, tuple) or isinstance(b, tuple):
        return per_band([in_band(a, k) * in_band(b, k) for k in range(_bands(a, b))])
    return a * b


def _bands(*numbers: Number) -> int:
    return max(len(number) for number in numbers if isinstance(number, tuple))


def nonzero(number: Number) -> bool:
    return any(c != 0 for c in number) if isinstance(number, tuple) else number != 0


def slots_of(op: Op) -> list[int]:
    """The slots that an operation writes."""
    return [slot for _, slot in op.outputs] if isinstance(op, Evaluate) else [op.slot]


def told(op: Evaluate) -> tuple[str, ...]:
    """The names of what a plan passes to the network at an evaluation."""
    return (*(name for name, _ in op.given), *(() if op.latent is None else ("latent",)))


V = TypeVar("V")


def _sum(terms: Sequence[tuple[float, Any]]) -> Any:
    """The sum of coefficients times values of any kind."""
    total = None
    for c, value in terms:
        part = c * value
        total = part if total is None else total + part
    return total


def play(
    ops: Sequence[Op],
    values: dict[int, V],
    answer: Callable[[Evaluate, V], tuple[str, V]],
    draw: Callable[[Draw], V],
) -> Iterator[Combine]:
    """Interpret a program on anything with `+` and `*`: arrays, tensors, symbols.

    `values` maps slots to values and is filled in; `answer(op, x)` gives the kind and the value of the network's
    answer, which is converted to what the program wants. Yields after each combination, whose value may be replaced in
    `values`. The program's numbers are floats: it is that of a plan, or of one band (`Plan.band`).
    """
    for op in ops:
        if isinstance(op, Evaluate):
            x = values[op.x]
            kind, value = answer(op, x)
            for wanted, slot in op.outputs:
                p, q = conversion(kind, wanted, *(in_band(scale, 0) for scale in op.scales))
                values[slot] = value if wanted == kind else _sum([(p, x), (q, value)])
        elif isinstance(op, Draw):
            values[op.slot] = draw(op)
        else:
            terms = [(in_band(c, 0), values[slot]) for slot, c in op.terms]
            values[op.slot] = _sum(terms or [(0.0, values[0])])
            yield op


# JSON


def number_to_json(number: Number) -> Any:
    return list(number) if isinstance(number, tuple) else number


def number_from_json(entry: Any) -> Number:
    return tuple(float(n) for n in entry) if isinstance(entry, list) else float(entry)


def op_to_json(op: Op) -> list[Any]:
    """An operation as a list, in which every number is exact (floats round-trip)."""
    if isinstance(op, Evaluate):
        scales = [number_to_json(scale) for scale in op.scales]
        entry = ["evaluate", op.x, op.t, [list(pair) for pair in op.outputs], scales]
        given = [list(pair) for pair in op.given]
        if op.latent is not None:
            return [*entry, given, op.latent]
        return [*entry, given] if given else entry
    if isinstance(op, Combine):
        return ["combine", op.slot, [[slot, number_to_json(c)] for slot, c in op.terms]]
    return ["draw", op.slot, op.draw, list(op.span) if op.span else None]


def op_from_json(entry: list[Any]) -> Op:
    """The operation of `op_to_json`; `ValueError`, `TypeError` or `IndexError` for anything else."""
    name = entry[0]
    if name == "evaluate":
        _, x, t, outputs, scales, *rest = entry
        alpha, sigma, dalpha, dsigma = (number_from_json(value) for value in scales)
        given = tuple((str(name), float(value)) for name, value in (rest[0] if rest else ()))
        wanted = tuple((str(kind), int(slot)) for kind, slot in outputs)
        latent = int(rest[1]) if len(rest) > 1 else None
        return Evaluate(int(x), float(t), wanted, (alpha, sigma, dalpha, dsigma), given, latent)
    if name == "combine":
        return Combine(int(entry[1]), tuple((int(slot), number_from_json(c)) for slot, c in entry[2]))
    if name == "draw":
        _, slot, draw, span = entry
        return Draw(int(slot), int(draw), None if span is None else (float(span[0]), float(span[1])))
    raise ValueError(f"unknown operation {name!r}")


def check_program(
    ops: Sequence[Op], result: int, times: Sequence[float], start: Sequence[Number], bands: int | None
) -> None:
    """`ValueError` unless slots are written once and before they are read, states are fed, and numbers are finite."""
    known, states = {0}, {0}  # the network is fed states (the start and combinations), and the result is one
    drawn = set[int]()
    numbers: list[Number] = [*times, *start]
    for op in ops:
        used: list[int] = []
        if isinstance(op, Evaluate):
            used = [op.x] if op.latent is None else [op.x, op.latent]
        elif isinstance(op, Combine):
            used = [slot for slot, _ in op.terms]
        if unknown := [slot for slot in used if slot not in known]:
            raise ValueError(f"slot {unknown[0]} is used before it is made")
        if isinstance(op, Evaluate):
            if op.x not in states:
                raise ValueError(f"slot {op.x} is evaluated, but it is no state")
            if op.latent is not None and op.latent not in drawn:
                raise ValueError(f"slot {op.latent} is a latent of the network, but it is no draw")
            if other := [kind for kind, _ in op.outputs if kind not in KINDS]:
                raise suggest("prediction kind", other[0], KINDS)
            numbers += [op.t, *(value for _, value in op.given)]
        elif isinstance(op, Combine):
            states.add(op.slot)
            numbers += [c for _, c in op.terms]
        else:
            drawn.add(op.slot)
        new = slots_of(op)
        if twice := [slot for slot in new if slot in known or new.count(slot) > 1]:
            raise ValueError(f"slot {twice[0]} is made twice")
        known.update(new)
    if result not in states:
        what = "no state" if result in known else "never made"
        raise ValueError(f"the result, slot {result}, is {what}")
    scales = [scale for op in ops if isinstance(op, Evaluate) for scale in op.scales]
    if any(isinstance(n, tuple) and len(n) != bands for n in (*numbers, *scales)):
        raise ValueError("a number has a different count of bands from the plan")
    if not all(math.isfinite(n) for number in numbers for n in (number if isinstance(number, tuple) else (number,))):
        raise ValueError("a time or a coefficient is not finite")


# Programs of several bands


def _read(ops: Sequence[Op]) -> set[int]:
    """The slots that some combination reads with a coefficient other than 0."""
    return {slot for op in ops if isinstance(op, Combine) for slot, c in op.terms if nonzero(c)}


def program_of(ops: Sequence[Op], band: int) -> tuple[Op, ...]:
    """One band's program, without what only the others read."""
    found: list[Op] = []
    for op in ops:
        if isinstance(op, Evaluate):
            alpha, sigma, dalpha, dsigma = (in_band(scale, band) for scale in op.scales)
            found.append(replace(op, scales=(alpha, sigma, dalpha, dsigma)))
        elif isinstance(op, Combine):
            terms = tuple((slot, in_band(c, band)) for slot, c in op.terms)
            found.append(Combine(op.slot, tuple((slot, c) for slot, c in terms if c != 0) or terms[:1]))
        else:
            found.append(op)
    read = _read(found)
    for i, op in enumerate(found):
        if isinstance(op, Evaluate):
            outputs = tuple((kind, slot) for kind, slot in op.outputs if slot in read)
            found[i] = replace(op, outputs=outputs)
    return tuple(found)


Key = tuple[str, int]


class _Named:
    """A band's program whose slots have names that do not depend on which kinds of prediction were asked for:
    ("state", number), ("draw", number), (kind, evaluation)."""

    def __init__(self, ops: Sequence[Op], result: int):
        self.ops = ops
        names: dict[int, Key] = {0: ("state", 0)}
        states = evaluations = 0
        for op in ops:
            if isinstance(op, Evaluate):
                evaluations += 1
                names |= {slot: (kind, evaluations) for kind, slot in op.outputs}
            elif isinstance(op, Draw):
                names[op.slot] = ("draw", op.draw)
            else:
                states += 1
                names[op.slot] = ("state", states)
        self.names, self.result = names, names[result]
        self.read = {names[slot] for slot in _read(ops)}

    def does(self, op: Op) -> tuple[object, ...]:
        """What all bands must have in common."""
        if isinstance(op, Evaluate):
            return ("evaluate", op.t, self.names[op.x], op.given, None if op.latent is None else self.names[op.latent])
        return (type(op), self.names[op.slot])


def merge(programs: Sequence[tuple[Sequence[Op], int]], name: str) -> tuple[tuple[Op, ...], int]:
    """The programs of all bands, `(operations, result)`, as one with numbers per band.

    They may differ only in their numbers and in which predictions they read. `ValueError` otherwise.
    """
    bands = [_Named(ops, result) for ops, result in programs]
    actions = [[band.result, *(band.does(op) for op in band.ops)] for band in bands]
    if any(action != actions[0] for action in actions):
        raise ValueError(
            f"the solver {name!r} does different things under the bands' processes (other evaluations, states or"
            " noise), so they cannot run as one: another solver, or bands that are pure noise and clean at the same"
            " times"
        )
    first = bands[0]
    slots: dict[Key, int] = {("state", 0): 0}
    merged: list[Op] = []
    for rows in zip(*(band.ops for band in bands), strict=True):
        lead = rows[0]
        if isinstance(lead, Evaluate):
            own = [(band, op) for band, op in zip(bands, rows, strict=True) if isinstance(op, Evaluate)]
            keys = dict.fromkeys(band.names[slot] for band, op in own for _, slot in op.outputs)
            keys = dict.fromkeys(key for key in keys if any(key in band.read for band in bands))
            outputs = tuple((key[0], slots.setdefault(key, len(slots))) for key in keys)
            alpha, sigma, dalpha, dsigma = (per_band([in_band(op.scales[i], 0) for _, op in own]) for i in range(4))
            x = slots[first.names[lead.x]]
            latent = None if lead.latent is None else slots[first.names[lead.latent]]
            merged.append(Evaluate(x, lead.t, outputs, (alpha, sigma, dalpha, dsigma), lead.given, latent))
            continue
        slot = slots.setdefault(first.names[lead.slot], len(slots))
        if isinstance(lead, Draw):
            merged.append(Draw(slot, lead.draw, lead.span))
            continue
        terms = [
            {band.names[source]: in_band(c, 0) for source, c in op.terms}
            for band, op in zip(bands, rows, strict=True)
            if isinstance(op, Combine)
        ]
        union = dict.fromkeys(key for own_terms in terms for key in own_terms)
        numbers = {key: per_band([own_terms.get(key, 0.0) for own_terms in terms]) for key in union}
        numbers = {key: c for key, c in numbers.items() if key in slots}  # the rest is read by no band
        merged.append(Combine(slot, tuple((slots[key], c) for key, c in numbers.items())))
    return tuple(merged), slots[first.result]
