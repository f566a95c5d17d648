"""A plan lowered to a table: stages of one evaluation, then one fused combination.

The result is a general linear method (Butcher): `states' = W [states; memory]` at each stage. `states` are rows that
the next stages need (the network's next input, a state kept for later), `memory` holds predictions and noises in slots
that are reused once their last reader is past. Combinations of one stage that refer to each other are expanded, so one
product makes all of them. The states' rows alternate between two blocks around the memory,

    [ states A | memory | states B ]

so that the inputs of every stage are contiguous rows, and its outputs other rows: no copy, no allocation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fewstep.core.plan import Combine, Draw, Evaluate, Plan
from fewstep.core.prediction import conversion


@dataclass(frozen=True)
class Stage:
    """Evaluate state row `x` (None: no evaluation), store the outputs and draws in memory rows, then combine.

    `weights` has one row a new state, and columns `[states | memory]`, as Python floats. `holds` are the memory rows
    that hold predictions when the stage combines: (row, stage of the evaluation, kind).
    """

    evaluate: Evaluate | None
    x: int
    outputs: tuple[tuple[str, int], ...]
    draws: tuple[tuple[int, int], ...]
    weights: tuple[tuple[float, ...], ...]
    holds: tuple[tuple[int, int, str], ...] = ()
    conversions: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict, compare=False)

    def convert(self, source: str, target: str) -> tuple[float, float]:
        """`(P, Q)` of `target = P x + Q source` at this evaluation."""
        pair = self.conversions.get((source, target))
        if pair is None:
            assert self.evaluate is not None
            try:
                pair = conversion(source, target, *self.evaluate.scales)
            except ZeroDivisionError:
                raise ValueError(
                    f"a prediction of {source!r} says nothing about {target!r} at t = {self.evaluate.t:g}, where"
                    f" alpha = {self.evaluate.scales[0]:g} and sigma = {self.evaluate.scales[1]:g}: it must predict v,"
                    " velocity or x0 to start from pure noise, or start a little later"
                ) from None
            self.conversions[source, target] = pair
        return pair


@dataclass(frozen=True)
class Table:
    """Stages, the number of state rows and memory rows, and the row in which the result ends."""

    stages: tuple[Stage, ...]
    states: int
    memory: int
    result: int

    @cached_property
    def _times(self) -> dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]]:
        return {}

    def times(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The evaluations' times as scalar tensors; one transfer, then cached."""
        if (device, dtype) not in self._times:
            times = [stage.evaluate.t for stage in self.stages if stage.evaluate is not None]
            self._times[device, dtype] = torch.tensor(times, dtype=dtype, device=device).unbind()
        return self._times[device, dtype]

    @cached_property
    def widths(self) -> frozenset[int]:
        """How many new states the stages make."""
        return frozenset(len(stage.weights) for stage in self.stages)

    @cached_property
    def _bound(self) -> dict[str, Bound]:
        return {}

    @cached_property
    def structure(self) -> Structure:
        stages = tuple(
            (
                stage.x if stage.evaluate is not None else None,
                tuple(slot for _, slot in stage.outputs),
                stage.draws,
                tuple(tuple(j for j, c in enumerate(row) if c != 0) or (0,) for row in stage.weights),
            )
            for stage in self.stages
        )
        return Structure(stages, self.states, self.result)

    def numbers(
        self, kind: str, device: torch.device, dtype: torch.dtype
    ) -> tuple[tuple[Tensor, ...], list[Tensor], list[Tensor]]:
        """Times, weights and conversions for `unrolled`, for a network that predicts `kind`."""
        weights = [torch.tensor(stage.weights, dtype=dtype, device=device) for stage in self.stages]
        pairs = [[stage.convert(kind, wanted) for wanted, _ in stage.outputs] for stage in self.stages]
        conversions = [torch.tensor(pair, dtype=dtype, device=device).reshape(-1, 2) for pair in pairs]
        return self.times(device, dtype), weights, conversions

    def bind(self, kind: str) -> Bound:
        """The table for a network that predicts `kind`; cached."""
        bound = self._bound.get(kind)
        if bound is None:
            bound = self._bound[kind] = Bound(self, kind)
        return bound


@dataclass(frozen=True)
class Structure:
    """A table without its numbers: per stage the state row fed, memory rows stored, draws, and columns read by each
    new state. Equal for every schedule of a solver with as many steps."""

    stages: tuple[tuple[int | None, tuple[int, ...], tuple[tuple[int, int], ...], tuple[tuple[int, ...], ...]], ...]
    states: int
    result: int


class Bound:
    """A table for one kind of prediction, with the conversions folded into the weights.

    A row wanted as `P x + Q value` is stored as `(P / Q) x + value`, one operation and no more than a copy costs, and
    the weights that read it are multiplied by Q. `ratios[stage][output]` is P / Q, or None where nothing is converted.
    """

    def __init__(self, table: Table, kind: str):
        self.table = table
        self.ratios: list[tuple[float | None, ...]] = []
        self.weights: list[list[list[float]]] = []
        factors: list[dict[str, float]] = []
        for stage in table.stages:
            pairs = {wanted: stage.convert(kind, wanted) for wanted, _ in stage.outputs if wanted != kind}
            # Q = 0 where x alone says it (eps at alpha = 0): a power of two in its place drowns the value, exactly.
            pairs = {wanted: (p, q or 2.0**-60) for wanted, (p, q) in pairs.items()}
            self.ratios.append(
                tuple(pairs[wanted][0] / pairs[wanted][1] if wanted in pairs else None for wanted, _ in stage.outputs)
            )
            factors.append({wanted: pair[1] for wanted, pair in pairs.items()})
            weights = [list(row) for row in stage.weights]
            for memory_row, source, wanted in stage.holds:
                for row in weights:
                    row[table.states + memory_row] *= factors[source].get(wanted, 1.0)
            self.weights.append(weights)
        self._on: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}

    def tensors(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """Each stage's weights, columns in the order of the rows it reads; one transfer, then cached."""
        cached = self._on.get((device, dtype))
        if cached is None:
            r, flat = self.table.states, []
            for i, weights in enumerate(self.weights):
                for row in weights:
                    flat += row if i % 2 == 0 else row[r:] + row[:r]
            columns = r + self.table.memory
            split = torch.tensor(flat, dtype=dtype, device=device).split([len(w) * columns for w in self.weights])
            cached = self._on[device, dtype] = [part.view(-1, columns) for part in split]
        return cached


def _segments(plan: Plan) -> list[list[Evaluate | Combine | Draw]]:
    """The operations, cut before each evaluation. The first segment holds what precedes the first one."""
    segments: list[list[Evaluate | Combine | Draw]] = [[]]
    for op in plan.ops:
        if isinstance(op, Evaluate):
            segments.append([op])
        else:
            segments[-1].append(op)
    return segments if segments[0] or len(segments) == 1 else segments[1:]


def _expanded(segment: list[Evaluate | Combine | Draw]) -> dict[int, dict[int, float]]:
    """Each combination of a segment in terms of what exists before the segment combines anything."""
    made: dict[int, dict[int, float]] = {}
    for op in segment:
        if isinstance(op, Combine):
            terms: dict[int, float] = {}
            for slot, c in op.terms:
                for source, d in made.get(slot, {slot: 1.0}).items():
                    terms[source] = terms.get(source, 0.0) + c * d
            made[op.slot] = terms
    return made


def lower(plan: Plan) -> Table:
    """Assign rows: states by stage, memory rows by their lifetimes."""
    segments = _segments(plan)
    combined = [_expanded(segment) for segment in segments]

    last: dict[int, int] = {plan.result: len(segments)}  # the last segment that reads a slot
    for i, segment in enumerate(segments):
        if segment and isinstance(segment[0], Evaluate):
            last[segment[0].x] = max(last.get(segment[0].x, 0), i)
    # A combination that nobody reads afterwards is not computed, so its sources are not alive for it.
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
        terms_of = [made.get(slot, {slot: 1.0}) for slot in alive]
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
            row = [0.0] * (states + size)
            for slot, c in terms.items():
                row[entry[slot] if slot in entry else states + held[slot]] += c
            weights.append(tuple(row))
        stages.append(Stage(evaluate, x, outputs, draws, tuple(weights), holds))
    return Table(tuple(stages), states, size, rows[plan.result])
