"""A memory for one run: what a denoiser may remember from one evaluation to the next, and what the host knows of them.

Nothing is kept in the model. An executor makes one `Memory` for a run and passes it as the condition `memory` to a
denoiser that `carries` one; it ends with the run. So threads, requests and branches of guidance never see each other's.

A call may be shared: its rows then belong to several memories, `Together`. What depends on a number known to the host
(the time, the number of the evaluation) is decided for groups of rows, `grouped`, and tensors are kept and read for all
rows at once. Without a memory, a denoiser that carries one computes exactly what one without would.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fewstep.core.model import Model
from fewstep.core.prediction import Prediction, joined

Key = TypeVar("Key", bound=Hashable)
Made = TypeVar("Made")


@dataclass
class _Run:
    """What all branches of a run share."""

    times: tuple[float, ...]
    end: float | None
    told: Mapping[str, float | None]  # the caller's conditions: numbers on the host, None for tensors
    solver: str = ""
    number: int = -1
    t: float | None = None
    given: Mapping[str, float | None] = field(default_factory=dict)
    seen: int = 0
    report: dict[str, Any] = field(default_factory=dict)
    made: dict[Any, Any] = field(default_factory=dict)


class Memory:
    """What one run of `rows` samples remembers.

    `number` counts the evaluations from 0; `times` are the plan's, `t` that of this evaluation and `step` `(t, s)` with
    the next one's (or the run's end), floats on the host, None where the sampler itself does not know them. `given`
    are the conditions that plan and caller give the network at this evaluation, by name: numbers on the host, and None
    for anything else. `kept` holds tensors by name, whose first axis is the run's rows, and `notes` what the host has
    to know of them. `report` becomes part of `Result.report`.
    """

    __slots__ = ("__weakref__", "_branches", "_run", "kept", "notes", "rows")

    def __init__(
        self,
        rows: int,
        times: Sequence[float] = (),
        end: float | None = None,
        given: Mapping[str, float | None] | None = None,
        solver: str = "",
    ):
        self.rows, self.kept, self.notes = rows, dict[str, Tensor](), dict[Any, Any]()
        self._run = _Run(tuple(times), end, dict(given or {}), solver)
        self._branches: dict[str, Memory] = {}

    def advance(self, t: float | None = None, given: Iterable[tuple[str, float]] = ()) -> None:
        """Move on to the next evaluation, at the plan's time or at `t`, with its own numbers; for executors."""
        run = self._run
        run.number += 1
        run.t = t if t is not None else run.times[run.number] if run.number < len(run.times) else None
        run.given = {**run.told, **dict(given)}

    @property
    def number(self) -> int:
        return self._run.number

    @property
    def times(self) -> tuple[float, ...]:
        return self._run.times

    @property
    def t(self) -> float | None:
        return self._run.t

    @property
    def step(self) -> tuple[float | None, float | None]:
        after = self._run.number + 1
        return self._run.t, self._run.times[after] if after < len(self._run.times) else self._run.end

    @property
    def given(self) -> Mapping[str, float | None]:
        return self._run.given

    @property
    def solver(self) -> str:
        return self._run.solver

    @property
    def report(self) -> dict[str, Any]:
        return self._run.report

    @property
    def seen(self) -> int:
        """Rows that innermost networks have seen in this run."""
        return self._run.seen

    def count(self, rows: int) -> None:
        """Record that an innermost network sees this many rows."""
        self._run.seen += rows

    def branch(self, name: str) -> Memory:
        """The memory of one branch of the run, such as guidance's empty condition: its own tensors, the run's clock."""
        if name not in self._branches:
            child = Memory.__new__(Memory)
            child.rows, child.kept, child.notes = self.rows, {}, {}
            child._run, child._branches = self._run, {}
            self._branches[name] = child
        return self._branches[name]

    def repeated(self, count: int) -> Memory:
        """A memory of the same run that has `count` rows, one after another, for each of ours."""
        wider = Memory(self.rows * count)
        wider._run = self._run
        return wider

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make()` gave when this run first asked for it under the key: something that is dear to make and holds
        nothing of the samples, such as a network with other parts."""
        made = self._run.made
        if key not in made:
            made[key] = make()
        found: Made = made[key]
        return found

    def fork(self, number: int, notes: Callable[[Any], Any]) -> Memory:
        """A second memory that goes on from evaluation `number` as this one did: the same tensors are kept in all its
        branches, and `notes(note)` in the place of each note. It counts and reports for itself."""
        run = replace(self._run, number=number, t=self._run.times[number], seen=0, report={}, made={})
        return self._forked(run, notes)

    def _forked(self, run: _Run, notes: Callable[[Any], Any]) -> Memory:
        other = Memory(self.rows)
        other._run, other.kept = run, dict(self.kept)
        other.notes = {key: notes(note) for key, note in self.notes.items()}
        other._branches = {name: branch._forked(run, notes) for name, branch in self._branches.items()}
        return other

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Put `function(kept)` in the place of every kept tensor `(rows, ...)`, in all branches."""
        self.kept = {name: function(value) for name, value in self.kept.items()}
        for branch in self._branches.values():
            branch.change(function)

    def get(self, name: str) -> Tensor | None:
        """A kept tensor `(rows, ...)`, or None."""
        return self.kept.get(name)

    def forget(self, name: str) -> None:
        """Let go of a kept tensor, where there is one."""
        self.kept.pop(name, None)

    def keep(self, name: str, value: Tensor) -> None:
        """Keep a tensor `(rows, ...)`."""
        self.kept[name] = value

    def parts(self) -> list[Memory | Part]:
        """The memories of single runs that share the call, in the order of its rows."""
        return [self]

    def __getitem__(self, rows: Tensor | slice) -> Part:
        """The memory of some rows, `(R,)` indices or a slice, as of every condition."""
        return Part(self, _indices(rows, self.rows))


class Part:
    """Some rows of a memory: what is kept in it is kept in the memory."""

    __slots__ = ("chosen", "memory", "rows")

    def __init__(self, memory: Memory, chosen: Tensor):
        self.memory, self.chosen, self.rows = memory, chosen, len(chosen)

    number = property(lambda self: self.memory.number)
    times = property(lambda self: self.memory.times)
    t = property(lambda self: self.memory.t)
    step = property(lambda self: self.memory.step)
    given = property(lambda self: self.memory.given)
    solver = property(lambda self: self.memory.solver)
    report = property(lambda self: self.memory.report)
    notes = property(lambda self: self.memory.notes)

    def count(self, rows: int) -> None:
        self.memory.count(rows)

    def branch(self, name: str) -> Part:
        return Part(self.memory.branch(name), self.chosen)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        return self.memory.once(key, make)

    def forget(self, name: str) -> None:
        self.memory.forget(name)

    def get(self, name: str) -> Tensor | None:
        whole = self.memory.kept.get(name)
        return None if whole is None else whole[self.chosen.to(whole.device)]

    def keep(self, name: str, value: Tensor) -> None:
        whole = self.memory.kept.get(name)
        if whole is None or whole.shape[1:] != value.shape[1:]:
            whole = value.new_zeros((self.memory.rows, *value.shape[1:]))
        self.memory.kept[name] = whole.index_copy(0, self.chosen.to(whole.device), value)

    def parts(self) -> list[Memory | Part]:
        return [self]

    def __getitem__(self, rows: Tensor | slice) -> Part:
        return Part(self.memory, self.chosen[_indices(rows, self.rows)])


def _indices(rows: Tensor | slice, count: int) -> Tensor:
    return torch.arange(count)[rows] if isinstance(rows, slice) else rows


class Together:
    """Several memories in one call, each with its rows, in order."""

    __slots__ = ("_parts", "rows")

    def __init__(self, memories: Sequence[Memory | Part | Together]):
        self._parts = [part for memory in memories for part in memory.parts()]
        self.rows = sum(part.rows for part in self._parts)

    def count(self, rows: int) -> None:
        """Record that an innermost network sees this many rows for each of ours."""
        for part in self._parts:
            part.count(part.rows * rows // self.rows)

    def branch(self, name: str) -> Together:
        return Together([part.branch(name) for part in self._parts])

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        return self._parts[0].once(key, make)

    def get(self, name: str) -> Tensor | None:
        """The kept tensors of all, concatenated; None where any has none, so group by that first."""
        found = [part.get(name) for part in self._parts]
        present = [value for value in found if value is not None]
        return torch.cat(present) if len(present) == len(found) else None

    def keep(self, name: str, value: Tensor) -> None:
        for part, own in zip(self._parts, value.split([part.rows for part in self._parts]), strict=True):
            part.keep(name, own)

    def parts(self) -> list[Memory | Part]:
        return self._parts

    def __getitem__(self, rows: Tensor | slice) -> Together:
        """The memories of some of the rows. An index on a device is read back: the host assigns the rows."""
        wanted = range(self.rows)[rows] if isinstance(rows, slice) else rows.tolist()
        ends = list(itertools.accumulate(part.rows for part in self._parts))
        owners = [bisect.bisect_right(ends, row) for row in wanted]
        found: list[Memory | Part] = []
        for owner, group in itertools.groupby(zip(owners, wanted, strict=True), key=lambda pair: pair[0]):
            own = [row - (ends[owner] - self._parts[owner].rows) for _, row in group]
            found.append(self._parts[owner][torch.tensor(own)])
        return Together(found)


AnyMemory = Memory | Part | Together


def grouped(memory: AnyMemory, key: Callable[[Memory | Part], Key]) -> list[tuple[Key, Tensor | None, AnyMemory]]:
    """The rows of a call grouped by a key of their memories: (key, rows `(R,)` or None for all, memory)."""
    parts = memory.parts()
    keys = [key(part) for part in parts]
    if all(other == keys[0] for other in keys):
        return [(keys[0], None, memory)]
    begins = [0, *itertools.accumulate(part.rows for part in parts)]
    found: list[tuple[Key, Tensor | None, AnyMemory]] = []
    for value in dict.fromkeys(keys):
        own = [i for i, other in enumerate(keys) if other == value]
        rows = torch.cat([torch.arange(begins[i], begins[i + 1]) for i in own])
        found.append((value, rows, Together([parts[i] for i in own])))
    return found


def ask(model: Model, x: Tensor, t: Tensor, memory: AnyMemory | None, condition: Mapping[str, Any]) -> Prediction:
    """The model's answer, with the memory if it carries one; otherwise its rows are counted: it is innermost."""
    if model.carries:
        return model(x, t, memory=memory, **condition) if memory is not None else model(x, t, **condition)
    if memory is not None:
        memory.count(len(x))
    return model(x, t, **condition)


def routed(
    memory: AnyMemory,
    key: Callable[[Memory | Part], Key],
    answer: Callable[[Key, Tensor, Tensor, AnyMemory, dict[str, Any]], Prediction],
    x: Tensor,
    t: Tensor,
    condition: Mapping[str, Any],
) -> Prediction:
    """The answer to a call whose rows are grouped by a key known to the host: `answer(key, x, t, memory, condition)`
    for each group, joined; of the first answer's kind."""
    groups = grouped(memory, key)
    if len(groups) == 1:
        return answer(groups[0][0], x, t, memory, dict(condition))
    found = []
    for value, rows, own in groups:
        assert rows is not None
        rows = rows.to(x.device)
        named = {name: v[rows] if isinstance(v, Tensor) and v.ndim else v for name, v in condition.items()}
        found.append((rows, answer(value, x[rows], t[rows] if t.ndim else t, own, named)))
    return joined(found, x, t)
