"""A plan lowered to a table: stages of one evaluation, then one fused combination.

The result is a general linear method (Butcher): `states' = W [states; memory]` at each stage. `states` are rows that
the next stages need (the network's next input, a state kept for later), `memory` holds predictions and noises in slots
that are reused once their last reader is past. Combinations of one stage that refer to each other are expanded, so one
product makes all of them. The states' rows alternate between two blocks around the memory,

    [ states A | memory | states B ]

so that the inputs of every stage are contiguous rows, and its outputs other rows: no copy, no allocation.

Under a process with bands the weights are numbers with one float per band (core/ops.py), and the products go element by
element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.core.ops import Combine, Draw, Evaluate, Number, Op, Spread, in_band, nonzero, per_band, plus, times
from fewstep.core.prediction import conversion

Weight = float | Tensor  # of a row: one number, or one for each element, (1, *shape)


@dataclass(frozen=True)
class Stage:
    """Evaluate state row `x` (None: no evaluation), store the outputs and draws in memory rows, then combine.

    `weights` has one row per new state, and columns `[states | memory]`, as Python floats. `holds` are the memory rows
    that hold predictions when the stage combines: (row, stage of the evaluation, kind). `unread` are the (kind, band)
    that no weight reads, where a conversion need not exist. `latent` is the number of the draw that the network gets at
    the evaluation, which needs no row.
    """

    evaluate: Evaluate | None
    x: int
    outputs: tuple[tuple[str, int], ...]
    draws: tuple[tuple[int, int], ...]
    weights: tuple[tuple[Number, ...], ...]
    holds: tuple[tuple[int, int, str], ...] = ()
    unread: frozenset[tuple[str, int]] = frozenset()
    conversions: dict[tuple[str, str], tuple[Number, Number]] = field(default_factory=dict, compare=False)
    latent: int | None = None

    @property
    def drawn(self) -> tuple[int, ...]:
        """The numbers of all its draws, in the order in which they are needed."""
        return (*(() if self.latent is None else (self.latent,)), *(number for number, _ in self.draws))

    def convert(self, source: str, target: str) -> tuple[Number, Number]:
        """`(P, Q)` of `target = P x + Q source` at this evaluation."""
        pair = self.conversions.get((source, target))
        if pair is None:
            assert self.evaluate is not None
            bands = max((len(scale) for scale in self.evaluate.scales if isinstance(scale, tuple)), default=1)
            pairs = [self._convert(source, target, band) for band in range(bands)]
            pair = per_band([p for p, _ in pairs]), per_band([q for _, q in pairs])
            self.conversions[source, target] = pair
        return pair

    def _convert(self, source: str, target: str, band: int) -> tuple[float, float]:
        assert self.evaluate is not None
        alpha, sigma, dalpha, dsigma = (in_band(scale, band) for scale in self.evaluate.scales)
        try:
            return conversion(source, target, alpha, sigma, dalpha, dsigma)
        except ZeroDivisionError:
            if (target, band) in self.unread:
                return 0.0, 0.0
            raise ValueError(
                f"a prediction of {source!r} says nothing about {target!r} at t = {self.evaluate.t:g}, where"
                f" alpha = {alpha:g} and sigma = {sigma:g}: it must predict v, velocity or x0 to start from pure"
                " noise, or start a little later"
            ) from None


@dataclass(frozen=True)
class Table:
    """Stages, the number of state rows and memory rows, the row of the final result, and the bands' elements."""

    stages: tuple[Stage, ...]
    states: int
    memory: int
    result: int
    spread: Spread | None = None

    @cached_property
    def _cached(self) -> dict[tuple[object, ...], Any]:
        return {}

    def times(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The evaluations' times as scalar tensors; one transfer, then cached."""
        key = ("times", device, dtype)
        if key not in self._cached:
            times = [stage.evaluate.t for stage in self.stages if stage.evaluate is not None]
            self._cached[key] = torch.tensor(times, dtype=dtype, device=device).unbind()
        return self._cached[key]

    @cached_property
    def evaluations(self) -> tuple[Evaluate, ...]:
        return tuple(stage.evaluate for stage in self.stages if stage.evaluate is not None)

    def given(self, device: torch.device, dtype: torch.dtype) -> list[dict[str, Tensor]] | None:
        """The plan's numbers for the network at each evaluation, as scalar tensors by name; None if it has none."""
        key = ("given", device, dtype)
        if key not in self._cached:
            named = [dict(op.given) for op in self.evaluations]
            flat = torch.tensor([v for own in named for v in own.values()], dtype=dtype, device=device).unbind()
            values = iter(flat)
            self._cached[key] = [{name: next(values) for name in own} for own in named] if flat else None
        return self._cached[key]

    def array(self, rows: Sequence[Sequence[Number]]) -> Tensor:
        """Numbers `(R, C)` as a float64 tensor of that shape, or `(R, C, 1, *shape)` under bands."""
        if self.spread is None:
            return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), -1)
        flat = self.spread.elements([n for row in rows for n in row])
        return flat.view(len(rows), -1, *flat.shape[1:]) if rows else flat

    def weigh(self, numbers: Sequence[Number], device: torch.device, dtype: torch.dtype) -> list[Weight]:
        """Numbers as factors of rows: floats as they are, those of several bands as tensors `(1, *shape)`."""
        several = [n for n in numbers if isinstance(n, tuple)]
        tensors = iter(self.spread.elements(several).to(device, dtype).unbind() if self.spread and several else ())
        return [next(tensors) if isinstance(n, tuple) else n for n in numbers]

    def stage_numbers(
        self, i: int, kind: str, device: torch.device, dtype: torch.dtype
    ) -> tuple[list[list[tuple[int, Weight]]], list[tuple[Weight, Weight] | None]]:
        """For `advance`: the (column, weight) that each new state of stage i reads, and P and Q of each of its outputs
        (None where it is the network's answer), for a network that predicts `kind`; cached."""
        key = ("stage", i, kind, device, dtype)
        if key not in self._cached:
            stage, weights = self.stages[i], []
            for row in stage.weights:
                columns = [j for j, c in enumerate(row) if nonzero(c)]
                factors = self.weigh([row[j] for j in columns], device, dtype)
                weights.append(list(zip(columns, factors, strict=True)))
            pairs: list[tuple[Weight, Weight] | None] = []
            for wanted, _ in stage.outputs:
                p, q = self.weigh(stage.convert(kind, wanted), device, dtype)
                pairs.append(None if wanted == kind else (p, q))
            self._cached[key] = weights, pairs
        return self._cached[key]

    @cached_property
    def widths(self) -> frozenset[int]:
        """How many new states the stages compute."""
        return frozenset(len(stage.weights) for stage in self.stages)

    @cached_property
    def structure(self) -> Structure:
        stages = tuple(
            (
                stage.x if stage.evaluate is not None else None,
                tuple(slot for _, slot in stage.outputs),
                stage.draws,
                tuple(tuple(j for j, c in enumerate(row) if nonzero(c)) or (0,) for row in stage.weights),
                stage.latent,
            )
            for stage in self.stages
        )
        return Structure(stages, self.states, self.result)

    def numbers(
        self, kind: str, device: torch.device, dtype: torch.dtype
    ) -> tuple[tuple[Tensor, ...], list[Tensor], list[Tensor]]:
        """Times, weights and conversions for `unrolled`, for a network that predicts `kind`.

        For each stage `(R, C)` and `(outputs, 2)`; under bands `(R, C, 1, *shape)` and `(outputs, 2, 1, *shape)`.
        """
        weights = [self.array(stage.weights).to(device, dtype) for stage in self.stages]
        pairs = [[stage.convert(kind, wanted) for wanted, _ in stage.outputs] for stage in self.stages]
        conversions = [self.array(pair).to(device, dtype) if pair else torch.zeros(0, 2) for pair in pairs]
        return self.times(device, dtype), weights, conversions

    def bind(self, kind: str) -> Bound:
        """The table for a network that predicts `kind`; cached."""
        key = ("bound", kind)
        if key not in self._cached:
            self._cached[key] = Bound(self, kind)
        return self._cached[key]


@dataclass(frozen=True)
class Structure:
    """A table without its numbers: per stage the state row fed, memory rows stored, draws, columns read by each new
    state, and the draw that is a latent. Equal for all schedules of a solver with the same number of steps."""

    stages: tuple[
        tuple[int | None, tuple[int, ...], tuple[tuple[int, int], ...], tuple[tuple[int, ...], ...], int | None], ...
    ]
    states: int
    result: int


class Bound:
    """A table for one kind of prediction, with the conversions folded into the weights.

    A row wanted as `P x + Q value` is stored as `(P / Q) x + value`, one operation and no more than a copy costs, and
    the weights that read it are multiplied by Q. `ratios[stage][output]` is P / Q, or None where nothing is converted.
    """

    def __init__(self, table: Table, kind: str):
        self.table = table
        self.ratios: list[tuple[Number | None, ...]] = []
        self.weights: list[list[list[Number]]] = []
        factors: list[dict[str, Number]] = []
        for stage in table.stages:
            pairs = {wanted: stage.convert(kind, wanted) for wanted, _ in stage.outputs if wanted != kind}
            # Q = 0 where x alone gives it (eps at alpha = 0): a power of two in its place drowns the value, exactly.
            pairs = {wanted: (p, _or(q, 2.0**-60)) for wanted, (p, q) in pairs.items()}
            self.ratios.append(tuple(_over(*pairs[wanted]) if wanted in pairs else None for wanted, _ in stage.outputs))
            factors.append({wanted: pair[1] for wanted, pair in pairs.items()})
            weights = [list(row) for row in stage.weights]
            for memory_row, source, wanted in stage.holds:
                factor, column = factors[source].get(wanted, 1.0), table.states + memory_row
                for row in weights:
                    row[column] = times(row[column], factor)
            self.weights.append(weights)
        self._on: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        self._factors: dict[
            tuple[torch.device, torch.dtype],
            tuple[list[list[tuple[int, Weight | None]]], list[list[list[Weight]]]],
        ] = {}

    def factors(
        self, device: torch.device, dtype: torch.dtype
    ) -> tuple[list[list[tuple[int, Weight | None]]], list[list[list[Weight]]]]:
        """The memory row and the ratio of each output, and the weights, as factors of rows; cached."""
        cached = self._factors.get((device, dtype))
        if cached is None:
            weigh = self.table.weigh
            ratios = [
                [
                    (slot, None if ratio is None else weigh([ratio], device, dtype)[0])
                    for (_, slot), ratio in zip(stage.outputs, own, strict=True)
                ]
                for stage, own in zip(self.table.stages, self.ratios, strict=True)
            ]
            weights = [[weigh(row, device, dtype) for row in stage] for stage in self.weights]
            cached = self._factors[device, dtype] = (ratios, weights)
        return cached

    def tensors(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """Each stage's weights, columns in the order of the rows it reads; one transfer, then cached. Not for bands."""
        cached = self._on.get((device, dtype))
        if cached is None:
            r, flat = self.table.states, list[Number]()
            for i, weights in enumerate(self.weights):
                for row in weights:
                    flat += row if i % 2 == 0 else row[r:] + row[:r]
            columns = r + self.table.memory
            split = torch.tensor(flat, dtype=dtype, device=device).split([len(w) * columns for w in self.weights])
            cached = self._on[device, dtype] = [part.view(-1, columns) for part in split]
        return cached


def _or(number: Number, other: float) -> Number:
    """The number, or `other` where it is 0."""
    return tuple(n or other for n in number) if isinstance(number, tuple) else number or other


def _over(p: Number, q: Number) -> Number:
    bands = max(len(n) if isinstance(n, tuple) else 1 for n in (p, q))
    return per_band([in_band(p, band) / in_band(q, band) for band in range(bands)])


def _segments(ops: Sequence[Op]) -> list[list[Op]]:
    """The operations, cut before each evaluation. The first segment holds what precedes the first one, where that
    combines: draws alone, such as a latent's, may as well come after it."""
    segments: list[list[Op]] = [[]]
    for op in ops:
        if isinstance(op, Evaluate):
            segments.append([op])
        else:
            segments[-1].append(op)
    before, *rest = segments
    if not rest or any(isinstance(op, Combine) for op in before):
        return segments
    return [[rest[0][0], *before, *rest[0][1:]], *rest[1:]]


def _expanded(segment: list[Op]) -> dict[int, dict[int, Number]]:
    """Each combination of a segment in terms of what exists before the segment combines anything."""
    made: dict[int, dict[int, Number]] = {}
    for op in segment:
        if isinstance(op, Combine):
            terms: dict[int, Number] = {}
            for slot, c in op.terms:
                for source, d in made.get(slot, {slot: 1.0}).items():
                    terms[source] = plus(terms.get(source, 0.0), times(c, d))
            made[op.slot] = terms
    return made


def _unread(ops: Sequence[Op], spread: Spread | None) -> dict[int, frozenset[tuple[str, int]]]:
    """For the first output slot of each evaluation: the (kind, band) that no combination reads."""
    if spread is None:
        return {}
    reading = [(slot, c) for op in ops if isinstance(op, Combine) for slot, c in op.terms]
    read = {(slot, band) for slot, c in reading for band in range(spread.bands) if in_band(c, band) != 0}
    return {
        op.outputs[0][1]: frozenset(
            (kind, band) for kind, slot in op.outputs for band in range(spread.bands) if (slot, band) not in read
        )
        for op in ops
        if isinstance(op, Evaluate) and op.outputs
    }


def lower(ops: Sequence[Op], result: int, spread: Spread | None = None) -> Table:
    """Assign rows: states by stage, memory rows by their lifetimes."""
    segments = _segments(ops)
    unread = _unread(ops, spread)
    drawn = {op.slot: op.draw for op in ops if isinstance(op, Draw)}
    combined = [_expanded(segment) for segment in segments]

    last: dict[int, int] = {result: len(segments)}  # the last segment that reads a slot
    for i, segment in enumerate(segments):
        if segment and isinstance(segment[0], Evaluate):
            last[segment[0].x] = max(last.get(segment[0].x, 0), i)
    # A combination that nothing reads afterwards is not computed, so its sources are not alive for it.
    for i in reversed(range(len(segments))):
        for slot, terms in combined[i].items():
            if last.get(slot, -1) > i:
                for source in terms:
                    last[source] = max(last.get(source, 0), i)

    rows = {0: 0}  # state rows at the entry of the current segment
    memory: dict[int, int] = {}
    made_by: dict[int, tuple[int, str]] = {}  # slot of a prediction: its stage and kind
    free: list[int] = []
    size = 0
    drafts = []
    for i, (segment, made) in enumerate(zip(segments, combined, strict=True)):
        evaluate = segment[0] if segment and isinstance(segment[0], Evaluate) else None
        new = [(kind, slot) for kind, slot in evaluate.outputs] if evaluate else []
        new += [("", op.slot) for op in segment if isinstance(op, Draw)]
        new = [(kind, slot) for kind, slot in new if slot in last]
        for _, slot in new:
            if not free:
                free.append(size)
                size += 1
            memory[slot] = free.pop(0)
        made_by |= {slot: (i, kind) for kind, slot in new if kind}
        outputs = tuple((kind, memory[slot]) for kind, slot in new if kind)
        draws = tuple((op.draw, memory[op.slot]) for op in segment if isinstance(op, Draw) and op.slot in memory)
        alive = [slot for slot in (*rows, *made) if last.get(slot, -1) > i]
        terms_of: list[dict[int, Number]] = [made.get(slot, {slot: 1.0}) for slot in alive]
        x = rows.get(evaluate.x, 0) if evaluate else 0
        holds = tuple((row, *made_by[slot]) for slot, row in memory.items() if slot in made_by)
        drafts.append((evaluate, x, outputs, draws, terms_of, rows, dict(memory), holds))
        rows = {slot: row for row, slot in enumerate(alive)}
        for slot in [slot for slot in memory if last[slot] <= i]:
            free.append(memory.pop(slot))

    states = max(len(draft[4]) for draft in drafts)
    states = max(states, 1)
    stages = []
    for evaluate, x, outputs, draws, terms_of, entry, held, holds in drafts:
        weights = []
        for terms in terms_of:
            row: list[Number] = [0.0] * (states + size)
            for slot, c in terms.items():
                column = entry[slot] if slot in entry else states + held[slot]
                row[column] = plus(row[column], c)
            weights.append(tuple(row))
        none = unread.get(evaluate.outputs[0][1], frozenset()) if evaluate and evaluate.outputs else frozenset()
        latent = None if evaluate is None or evaluate.latent is None else drawn[evaluate.latent]
        stages.append(Stage(evaluate, x, outputs, draws, tuple(weights), holds, none, latent=latent))
    return Table(tuple(stages), states, size, rows[result], spread)
