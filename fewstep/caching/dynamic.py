"""Caches that decide for each sample, from what the network has just computed, whether the rest of it is run.

A *gate* stands before a stretch of blocks. It compares a signal, what the blocks in front have added or what the first
of them attends to, with that of an earlier evaluation, row by row; the stretch is run on the rows that changed too
much, and the others are given what it last added to them. So a sample's result does not depend on what shares its
batch. Which rows are run is read from the device, once a call of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.caching.parts import Part, added, entering, leaving, onto, returned
from fewstep.core.memory import AnyMemory, Memory
from fewstep.core.memory import Part as Rows
from fewstep.networks.surgery import Block, InPlaceOf

# What is kept for each row: the signal, the change since it was kept, and 1 more than how often the stretch has stood
# since it ran, 0 where it never has.
SIGNAL, CHANGE, AGE = "signal @gate", "change @gate", "age @gate"
Signal = Callable[[nn.Module, Block, tuple[Any, ...], Mapping[str, Any]], Tensor]


@dataclass(frozen=True)
class Gate:
    """When a part stands, row by row: while the change of the signal stays below a threshold.

    The change is `|s - s'| / |s'|`, of sums of absolute values. Of a `front` part the signal is what that adds to its
    input (of a joint one to the picture alone), and s' that of the row's last whole evaluation. Of a function `signal`
    of the part's first block and what enters it, s' is that of the evaluation before, and the changes add up since the
    last whole one, each through the polynomial of these coefficients, highest power first, where it is positive.

    part: the stretch that may stand. most: how often in a row; None for any number.
    """

    part: str
    threshold: float
    most: int | None = None
    front: str = ""
    signal: Signal | None = None
    coefficients: tuple[float, ...] = (1.0, 0.0)

    def knows(self, part: Memory | Rows) -> bool:
        """Whether anything is kept that could stand."""
        return part.get(AGE) is not None


@dataclass
class Gated:
    """One call of a network with a gate: what it works on, and what it decided."""

    gate: Gate
    part: Part
    store: dict[str, Tensor]
    memory: AnyMemory | None = None
    may: bool = False
    ran: list[bool] = field(default_factory=list)
    entered: list[Tensor] = field(default_factory=list)
    rows: Tensor | None = None  # that the stretch is run on, (R,); None for all

    def begin(self, memory: AnyMemory, may: bool, count: int) -> None:
        """may: whether the host lets the part stand."""
        self.memory, self.may, self.ran, self.rows = memory, may, [True] * count, None

    def end(self) -> list[bool]:
        """For each row whether the stretch ran."""
        self.memory, self.entered = None, []
        self.store.clear()
        return self.ran

    def decide(self, module: nn.Module, block: Block, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Which rows the stretch is run on; what the gate compares is kept."""
        assert self.memory is not None
        gate, memory = self.gate, self.memory
        self.entered = entering(block, args, named)
        signal = self.store[gate.front] if gate.signal is None else gate.signal(module, block, args, named)
        none = torch.zeros(len(signal), dtype=torch.float32, device=signal.device)
        if not self.may:
            self._remember(signal, none, none.int() + 1)
            return
        before, change, age = (_kept(memory, name) for name in (SIGNAL, CHANGE, AGE))
        now = relative(signal, before)
        if gate.signal is not None:
            now = change + polynomial(gate.coefficients, now).clamp_min(0)
        stands = (now < gate.threshold) & (age > 0)
        if gate.most is not None:
            stands = stands & (age <= gate.most)
        self.ran = (~stands).tolist()
        kept = before if gate.signal is None else signal
        signal = torch.where(stands.view(-1, *[1] * (signal.ndim - 1)), kept, signal)
        self._remember(signal, torch.where(stands, now, none), torch.where(stands, age + 1, torch.ones_like(age)))
        if not all(self.ran):
            self.rows = torch.tensor([i for i, ran in enumerate(self.ran) if ran], dtype=torch.long).to(signal.device)

    def _remember(self, signal: Tensor, change: Tensor, age: Tensor) -> None:
        assert self.memory is not None
        for name, value in ((SIGNAL, signal), (CHANGE, change), (AGE, age)):
            self.memory.keep(name, value)

    def chosen(self, value: Any) -> Any:
        """An argument of a block for the rows that are run: of a tensor that has all rows, those."""
        assert self.rows is not None
        whole = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(self.ran)
        return value[self.rows] if whole else value

    def finish(self, block: Block, answer: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """What the stretch returns for all rows, from the answer of its last block for those that it ran on; what it
        adds is kept."""
        assert self.memory is not None
        fresh, values = leaving(block, answer), []
        for key, out, into in zip(self.part.keys, fresh, self.entered, strict=True):
            name = f"{key} @gate"
            if self.rows is None:
                self.memory.keep(name, added(out, into))
                continue
            kept = _kept(self.memory, name)
            value = onto(into, kept)
            if len(self.rows):
                self.memory.keep(name, kept.index_copy(0, self.rows, added(out, into[self.rows])))
                value = value.index_copy(0, self.rows, out)
            values.append(value)
        return returned(block, values, args, named) if values else answer


def _kept(memory: AnyMemory, name: str) -> Tensor:
    found = memory.get(name)
    assert found is not None  # the host lets nothing stand where nothing is kept
    return found


class Behind(InPlaceOf):
    """A block of a stretch behind a gate: it runs on the rows that the gate chose."""

    def __init__(self, of: nn.Module, block: Block, call: Gated):
        super().__init__(of)
        self.run, self.block, self.call = of, block, call
        self.opens, self.closes = block is call.part.blocks[0], block is call.part.blocks[-1]

    def forward(self, *args: Any, **named: Any) -> Any:
        call = self.call
        if self.opens:
            call.decide(self.run, self.block, args, named)
        if call.rows is None:
            answer = self.run(*args, **named)
        elif len(call.rows):
            answer = self.run(*map(call.chosen, args), **{name: call.chosen(v) for name, v in named.items()})
        else:
            answer = returned(self.block, entering(self.block, args, named), args, named)
        return call.finish(self.block, answer, args, named) if self.closes else answer


def gated(gate: Gate, model: nn.Module, parts: Mapping[str, Part]) -> tuple[dict[str, nn.Module], Gated]:
    """The modules, by path, that put a gate before its part, and the call that they share."""
    store: dict[str, Tensor] = {}
    call = Gated(gate, parts[gate.part], store)
    modules: dict[str, nn.Module] = {
        block.path: Behind(model.get_submodule(block.path), block, call) for block in call.part.blocks
    }
    return modules | (parts[gate.front].keeping(model, store) if gate.front else {}), call


def relative(now: Tensor, before: Tensor) -> Tensor:
    """`|now - before| / |before|` of each row `(rows, ...)`, of sums of absolute values, float32; without a number, or
    infinite, where `before` is 0."""
    change = (now - before).float().abs().flatten(1).sum(1)
    return change / before.float().abs().flatten(1).sum(1)


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """The polynomial of these coefficients, highest power first."""
    found = torch.zeros_like(x)
    for coefficient in coefficients:
        found = found * x + coefficient
    return found
