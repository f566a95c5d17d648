"""A plan's arithmetic without the network: its table's rows, combined in place, and the generator over them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.core.noise import Source, stream
from fewstep.core.table import Bound, Table, Weight


def add_up(weights: Sequence[Sequence[Weight]], rows: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
    """The combination row by row: for weights that differ from element to element, and for devices on which a global
    setting may round matrix products to TF32."""
    for row, out in zip(weights, writes, strict=False):
        terms = [(c, value) for c, value in zip(row, rows, strict=True) if isinstance(c, Tensor) or c != 0.0]
        if not terms:
            out.zero_()
            continue
        torch.mul(terms[0][1], terms[0][0], out=out)
        for c, value in terms[1:]:
            if isinstance(c, Tensor):
                out.addcmul_(value, c)
            else:
                out.add_(value, alpha=c)


# What a program asks to have evaluated: the state `(B, *shape)`, a view that the next step overwrites, the time, and
# numbers for the network, `(B,)` by name; a draw for it, "latent", has the state's shape.
Ask = tuple[Tensor, Tensor, Mapping[str, Tensor]]
# Yields what is to be evaluated, is sent the answer and its kind, and returns the samples.
Program = Generator[Ask, tuple[Tensor, str], Tensor]


def drive(steps: Program, answer: Callable[[Ask], tuple[Tensor, str]]) -> Tensor:
    """Run a program to its end."""
    try:
        asked = next(steps)
        while True:
            asked = steps.send(answer(asked))
    except StopIteration as stop:
        return stop.value


class Rows:
    """A table's states and memory during a run, combined in place; every view is made once.

    `fed` is what the network is to see at stage `i`; `advance` takes its answer. Even stages read [A | memory] and
    write B, odd stages read [memory | B] and write A.
    """

    def __init__(self, table: Table, like: Tensor, dtype: torch.dtype | None = None):
        r, m = table.states, table.memory
        self.table, self.shape = table, like.shape
        self.dtype, self.device = dtype or like.dtype, like.device
        self.whole = rows = torch.zeros((2 * r + m, *like.shape), dtype=self.dtype, device=self.device)
        views, flat = rows.unbind(), rows.view(2 * r + m, -1)
        self.memory, self.state = views[r : r + m], (views[:r], views[r + m :])
        self._reads = (flat[: r + m], flat[r:])
        self._writes = {n: (flat[r + m : r + m + n], flat[:n]) for n in table.widths}
        self._products = self.device.type == "cpu" and table.spread is None  # one product reads each row once
        self._bound: Bound | None = None
        # Of each stage: the row that the network sees; and the result's, after the last one.
        self._fed = [*(stage.x for stage in table.stages), table.result]
        self.go_to(0)

    def go_to(self, i: int) -> None:
        """Continue at stage i; `fed` is the state that the network is to see, or the result after the last stage."""
        self.i, self.fed = i, self.state[i & 1][self._fed[i]]

    def reorder(self, index: Tensor) -> None:
        """Put sample `index[i]` in the place of sample i, `(B,)`, in all that is kept; `fed` stays the same view."""
        self.whole.copy_(self.whole[:, index])

    def bind(self, kind: str) -> None:
        """Set the kind of prediction that the network makes."""
        self._bound, self.kind = self.table.bind(kind), kind
        self._outputs, self._weights = self._bound.factors(self.device, self.dtype)
        self._matrices = self._bound.tensors(self.device, self.dtype) if self._products else []

    def advance(self, value: Tensor | None, kind: str, draw: Callable[..., Tensor]) -> None:
        """Take the network's answer at `fed` (None at a stage without one), draw what the stage draws, and combine."""
        i, memory = self.i, self.memory
        odd, stage = i & 1, self.table.stages[i]
        if value is not None:
            x = self.fed
            if self._bound is None:
                self.bind(kind)
            elif kind != self.kind:  # a wrapper that changes its mind: the table is bound to the first kind
                p, q = self.table.weigh(stage.convert(kind, self.kind), self.device, self.dtype)
                value = p * x + q * value
            for slot, ratio in self._outputs[i]:
                if ratio is None:
                    memory[slot].copy_(value)
                elif isinstance(ratio, Tensor):
                    torch.addcmul(value, x, ratio, out=memory[slot])
                else:
                    torch.add(value, x, alpha=ratio, out=memory[slot])
        for number, slot in stage.draws:
            memory[slot].copy_(draw(number, self.shape, self.device, self.dtype))
        if self._bound is None:  # before the first evaluation: noise and states alone, no kind matters
            weights = [self.table.weigh(row, self.device, self.dtype) for row in stage.weights]
            add_up(weights, [*self.state[odd], *memory], self.state[1 - odd])
        elif self._products:
            torch.mm(self._matrices[i], self._reads[odd], out=self._writes[len(stage.weights)][odd])
        else:
            add_up(self._weights[i], [*self.state[odd], *memory], self.state[1 - odd])
        self.i = i = i + 1
        self.fed = self.state[i & 1][self._fed[i]]


def program(table: Table, start: Tensor, source: Source, rows: Rows | None = None) -> Program:
    """The plan's arithmetic without the network: its driver evaluates `(x, t)` and sends `(value, kind)` back.

    `value` must have x's shape. `rows` is the storage to use, made for the table and for states like `start`: a driver
    that keeps it may `reorder` the samples between two sends.
    """
    rows = Rows(table, start) if rows is None else rows
    rows.state[0][0].copy_(start)
    shape, device, dtype = tuple(start.shape), start.device, start.dtype
    del start
    told: list[Mapping[str, Tensor]] = [{}] * len(table.evaluations)
    if (given := table.given(device, dtype)) is not None:
        told = [{name: value.expand(shape[0]) for name, value in own.items()} for own in given]
    numbers = [number for stage in table.stages for number in stage.drawn]
    drawn, advance = stream(source, numbers, shape, device, dtype), rows.advance

    def draw(*_: Any) -> Tensor:  # a table draws in the order of its stages
        return next(drawn)

    if table.stages and table.stages[0].evaluate is None:  # what comes before the first evaluation
        advance(None, "", draw)
    for t, own in zip(table.times(device, dtype), told, strict=True):
        if table.stages[rows.i].latent is not None:
            own = {**own, "latent": next(drawn).clone()}
        value, kind = yield rows.fed, t, own
        advance(value, kind, draw)
    return rows.fed.clone()
