"""The wrapper of caches: a model of which parts stand still at some evaluations of a run.

A *schedule* says, from the number of an evaluation alone, which parts are not run there; a *forecast* puts in their
place a polynomial in log-SNR through what they last said, of order 1 (the last one again) or more. Where a *gate* is
given, the schedule says which part may stand, and the gate decides for each sample, on the device. Everything is kept
in the run's memory, branch by branch and sample by sample; without a gate nothing is read from the device.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from fewstep.caching.dynamic import Gate, Gated, gated
from fewstep.caching.forecast import Node, coordinate_at, level, nodes, told, weighted, weights
from fewstep.caching.parts import NOISE, Store, innermost
from fewstep.caching.recipe import OUTPUT, Recipe, moved
from fewstep.caching.report import tell
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import AnyMemory, Memory, ask, routed
from fewstep.core.memory import Part as Rows
from fewstep.core.prediction import Prediction, conversion, expand, scales
from fewstep.denoisers.operations import operations
from fewstep.networks.surgery import compiled_as, has, replaced

SHORT = 8  # evaluations of a plan that leaves nothing to save
Made = TypeVar("Made")


@dataclass
class _Notes:
    """What the host knows of what one branch keeps: of each part its evaluations and log-SNRs, the newest last."""

    kept: dict[str, list[Node]] = field(default_factory=dict)
    like: Prediction | None = None  # the last answer, without its rows
    inside: set[str] = field(default_factory=set)  # keys whose values have rows for the frames of each sample

    def only(self, numbers: Sequence[int]) -> _Notes:
        """Of these evaluations alone."""
        kept = {name: [one for one in found if one[0] in numbers] for name, found in self.kept.items()}
        return _Notes(kept, self.like, set(self.inside))


class Cached(Wrapper):
    """A model under one method of caching; `fs.cache` makes it.

    Without a run's memory, and where the host does not know the times of a run, it is the model itself. `Result.report`
    counts `whole`, `part` and `forecast` evaluations (of a sample, in the mean, where a gate decides), their `cost` in
    whole ones, and the most `bytes` held.

    Around guidance and the like the cache works inside, where each row of the network is one of the run's.
    """

    _inner: Cached | None
    _original: Cached

    def __init__(self, model: Denoiser, recipe: Recipe, said: tuple[str, Mapping[str, Any]]):
        super().__init__(model)
        self.recipe, self.said, self.adaptor = recipe, said, recipe.adaptor
        self._at = innermost(model, recipe.parts)
        inner = model.get_submodule(self._at) if self._at else None
        assert inner is None or isinstance(inner, Denoiser)
        # Beside the table of submodules: it is in `model`.
        self.__dict__["_inner"] = None if inner is None else Cached(inner, moved(recipe, f"{self._at}."), said)
        # Shared by copies of it, into which something has put other modules.
        self._key, self._costs = object(), dict[tuple[str, ...], float]()
        self.__dict__["_original"] = self

    def config(self) -> dict[str, Any]:
        return {"model": self.model} | dict(self.said[1])

    @property
    def made_by(self) -> tuple[str, str]:
        """The kind and name of the card whose function rebuilds it."""
        return "cache", self.said[0]

    def describe(self) -> dict[str, Any]:
        told = ", ".join(
            f"{name} {value}" for name, value in self.said[1].items() if isinstance(value, int | float | str)
        )
        more: dict[str, Any] = {} if self.bound is None else {"cache bound": str(self.bound)}
        if self.recipe.gate is not None:
            more["reads the device"] = "once an evaluation, what to run of each sample"
        return self.model.describe() | {"cache": self.said[0] + (f": {told}" if told else "")} | more

    @property
    def carries(self) -> bool:
        return not self.recipe.never or self.model.carries

    @property
    def inside(self) -> str:
        """The path of the denoiser that the cache works around, "" for the model itself."""
        return self._at

    @property
    def schedule(self) -> Sequence[str] | None:
        """What is run at each evaluation, in words, of a cache that was calibrated for a plan; None of others."""
        return self.recipe.rows

    @property
    def bound(self) -> Any:
        """How near fresh samples are to the whole model's, of a cache that was calibrated; None of others."""
        return self.recipe.bound

    @property
    def figures(self) -> Mapping[str, Any] | None:
        """What was measured when it was calibrated, as JSON; None of others."""
        return self.recipe.figures

    def order(self, part: str) -> int:
        """Of a part's forecasts."""
        return self.recipe.order if isinstance(self.recipe.order, int) else self.recipe.order[part]

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        if memory is None or self.recipe.never:
            return ask(self.model, x, t, memory, condition)
        if self._inner is not None:
            return ask(self._made(memory, ("inside",), self._outer), x, t, memory, condition)
        return routed(memory, self.decide, self._answer, x, t, condition)

    def decide(self, part: Memory | Rows) -> tuple[tuple[str, int], ...] | None:
        """The parts that stand at this evaluation, each with how many kept answers its forecast goes through.

        None where the host does not know the time: nothing stands, and nothing is kept.
        """
        if part.number == 0:
            self._begin(part)
        if part.t is None:
            return None
        if self.recipe.gate is not None:
            known = self.recipe.gate.knows(part)
            return tuple((name, 1) for name in self.recipe.schedule(part.number, len(part.times)) if known)
        kept, at, number = _notes(part, self._key).kept, level(self.process, part.t), self._number(part)
        if self.recipe.ahead is not None:
            self.recipe.ahead.turn(part, kept)
        orders, found = self.recipe.orders, []
        for name in self.recipe.schedule(number, len(part.times) + number - part.number):
            if kept.get(name):
                order = self.order(name) if orders is None else orders(number, name)
                count = len(nodes(kept[name], at, order))
                if orders is None or count == order:
                    found.append((name, count))
        return tuple(found)

    def _number(self, part: Memory | Rows) -> int:
        """Of this evaluation in the schedule."""
        return part.number + (0 if self.recipe.offset is None else self.recipe.offset(part))

    def _begin(self, part: Memory | Rows) -> None:
        if self.recipe.checks is not None:
            self.recipe.checks(part)
        n = len(part.times)
        host = self.recipe.rows is None and self.recipe.gate is None  # neither measured nor decided as it runs
        if host and 0 < n <= SHORT and any(self.recipe.schedule(k, n) for k in range(n)):
            cost = sum(self.cost(tuple(self.recipe.schedule(k, n)) if k else ()) for k in range(n))
            warnings.warn(
                f"a plan of {n} evaluations leaves little to save: this cache makes them as dear as {cost:.1f} whole"
                f" ones, and a plan of {max(math.ceil(cost), 1)} is likely to be nearer",
                stacklevel=2,
            )

    def _answer(
        self,
        standing: tuple[tuple[str, int], ...] | None,
        x: Tensor,
        t: Tensor,
        memory: AnyMemory,
        condition: dict[str, Any],
    ) -> Prediction:
        if standing is None:
            return ask(self.model, x, t, memory, condition)
        names = tuple(name for name, _ in standing)
        if self.recipe.gate is not None:
            return self._gated(self.recipe.gate, bool(names), x, t, memory, condition)
        if OUTPUT in names:
            found = self._forecast_output(dict(standing)[OUTPUT], x, t, memory)
        else:
            graft, store = self._made(memory, names, lambda: self.graft(names))
            try:
                self.fill(standing, store, memory)
                found = ask(graft, x, t, memory, condition)
                self.settle(names, store, memory)
            finally:
                store.clear()
            if not names and OUTPUT in self.recipe.parts:
                self._keep_output(found, memory)
        self._tell(names, memory)
        return found if self.recipe.ahead is None else self.recipe.ahead.after(self, names, found, memory, condition)

    def fill(self, standing: tuple[tuple[str, int], ...], store: Store, memory: AnyMemory) -> None:
        """Put the forecasts of what stands into a store."""
        for name, count in standing:
            for key in self.recipe.parts[name].keys:
                value = self._forecast(name, key, count, memory)
                each = len(value) // memory.rows  # frames of a clip
                store[key] = self.recipe.adjust(key, value, [(self._number(p), p.rows * each) for p in memory.parts()])
        if self.adaptor is not None and store:
            noise = [told(self.process, _known(part.t)) for part in memory.parts() for _ in range(part.rows * each)]
            store[NOISE] = torch.tensor(noise).to(next(iter(store.values())).device, non_blocking=True)

    def settle(self, standing: tuple[str, ...], store: Store, memory: AnyMemory) -> None:
        """Keep what an evaluation has put into a store."""
        for name, part in self.recipe.parts.items():
            if name not in standing and all(key in store for key in part.keys):
                self._keep(name, {key: store[key] for key in part.keys}, memory)

    def _gated(
        self, gate: Gate, may: bool, x: Tensor, t: Tensor, memory: AnyMemory, condition: dict[str, Any]
    ) -> Prediction:
        def make() -> tuple[Denoiser, Gated]:
            modules, call = gated(gate, self.model, self.recipe.parts)
            return self._with(modules), call

        graft, call = self._made(memory, ("gate",), make)
        call.begin(memory, may, len(x))
        found = ask(graft, x, t, memory, condition)
        self._tell((gate.part,), memory, call.end())
        return found

    def _made(self, memory: AnyMemory, names: tuple[str, ...], make: Callable[[], Made]) -> Made:
        """What `make` gives, once a run: anew where something has put other modules into the model since."""
        box: dict[str, Any] = memory.once((self._key, names), dict)
        if box.get("of") is not self.model:
            box["of"], box["made"] = self.model, make()
        made: Made = box["made"]
        return made

    def _outer(self) -> Denoiser:
        """The model with the cache inside."""
        assert self._inner is not None
        made = self._with({self._at: replaced(self._inner, {"model": self.model.get_submodule(self._at)})})
        return made if self.recipe.around is None else self.recipe.around(made)

    def _fresh(self, standing: tuple[str, ...]) -> list[str]:
        """The parts that an evaluation has run whole: none of their blocks stood."""
        if OUTPUT in standing:
            return []
        parts, never = self.recipe.parts, {OUTPUT, *standing, self.recipe.ahead and self.recipe.ahead.part}
        stood = tuple(f"{block.path}." for name in standing for block in parts[name].blocks)
        ran = {
            name: not any(f"{block.path}.".startswith(stood) for block in part.blocks) for name, part in parts.items()
        }
        return [name for name in parts if name not in never and ran[name]]

    def graft(self, standing: tuple[str, ...]) -> tuple[Denoiser, dict[str, Tensor]]:
        """The model with these parts standing and the others kept, and the store that both go through."""
        store: dict[str, Tensor] = {}
        found, modules = self.model, dict[str, Any]()
        kept = self._fresh(standing)
        for name in filter(self._there, (*standing, *kept)):
            part = self.recipe.parts[name]
            stands = functools.partial(part.standing, adaptor=self.adaptor)
            make = part.keeping if name in kept else stands
            own = make(found, store)
            if own.keys() & modules.keys():  # parts that end alike go around each other
                found, modules = self._with(modules), {}
                own = make(found, store)
            modules |= own
        graft = replaced(found, modules)
        assert isinstance(graft, Denoiser)
        compiled_as(self.model, graft)
        return graft, store

    def _there(self, name: str) -> bool:
        """Whether the model has the part still: what goes around a cache may have left out the block that it is in."""
        return all(has(self.model, block.path) for block in self.recipe.parts[name].blocks)

    def _with(self, modules: dict[str, Any]) -> Denoiser:
        found = replaced(self.model, modules)
        assert isinstance(found, Denoiser)
        return found

    # What is kept of a part at evaluation n lies in the memory under "KEY @n", with a row for each sample.

    def _keep(self, name: str, values: Mapping[str, Tensor], memory: AnyMemory) -> None:
        for key, value in values.items():
            memory.keep(f"{key} @new", value if len(value) == memory.rows else value.unflatten(0, (memory.rows, -1)))
        for part in memory.parts():
            _notes(part, self._key).inside |= {key for key, value in values.items() if len(value) != memory.rows}
            kept = _notes(part, self._key).kept.setdefault(name, [])
            here = part.number, level(self.process, _known(part.t))
            if not kept or kept[-1] != here:  # not the same evaluation with other rows
                kept.append(here)
            needed = {here, *nodes(kept, 0.0, self.order(name))}
            gone = [node for node in kept if node not in needed]
            kept[:] = [node for node in kept if node in needed]
            for key in values:
                fresh = part.get(f"{key} @new")
                assert fresh is not None
                self._same(name, key, fresh, kept, part)
                part.keep(f"{key} @{here[0]}", fresh)
                part.forget(f"{key} @new")
                for number, _ in gone:
                    part.forget(f"{key} @{number}")

    def _same(self, name: str, key: str, fresh: Tensor, kept: Sequence[Node], part: Memory | Rows) -> None:
        """`ValueError` for a value of another shape than what is kept of it: no forecast goes through both."""
        for number, _ in kept:
            before = part.get(f"{key} @{number}")
            if before is not None and before.shape != fresh.shape:
                raise ValueError(
                    f"{name!r} was {tuple(before.shape)} at evaluation {number} and is {tuple(fresh.shape)} at"
                    f" {part.number}: a network whose values change their shape cannot be cached there"
                )

    def _forecast(self, name: str, key: str, count: int, memory: AnyMemory) -> Tensor:
        """What a part would have said: from its last `count` kept answers."""
        parts, through, rows = memory.parts(), list[list[Node]](), list[list[float]]()
        for part in parts:
            at = level(self.process, _known(part.t))
            through.append(nodes(_notes(part, self._key).kept[name], at, count))
            rows.append(weights(through[-1], at))
        values = []
        for k in range(count):
            found = [part.get(f"{key} @{own[k][0]}") for part, own in zip(parts, through, strict=True)]
            tensors = [value for value in found if value is not None]
            if len(tensors) != len(found):
                raise ValueError(f"what was kept of {name!r} is gone: a run's rows must stay together")
            values.append(tensors[0] if len(tensors) == 1 else torch.cat(tensors))
        if key in _notes(parts[0], self._key).inside:
            values = [value.flatten(0, 1) for value in values]
        if all(row == rows[0] for row in rows):
            return weighted(values, rows[0])
        numbers = [r for r, p in zip(rows, parts, strict=True) for _ in range(p.rows * len(values[0]) // memory.rows)]
        return weighted(values, torch.tensor(numbers, dtype=values[0].dtype).to(values[0].device, non_blocking=True))

    # The output is kept in the recipe's coordinate, and whatever else the answer holds as it was last.

    def _keep_output(self, found: Prediction, memory: AnyMemory) -> None:
        self._keep(OUTPUT, {OUTPUT: self.changed(found.value, found.kind, found.x, found.t, to=True)}, memory)
        for name, tensor in found.beside().items():
            memory.keep(f"{OUTPUT} {name}", tensor)
        for part in memory.parts():
            _notes(part, self._key).like = found.part(slice(0, 0))

    def _forecast_output(self, count: int, x: Tensor, t: Tensor, memory: AnyMemory) -> Prediction:
        value = self._forecast(OUTPUT, OUTPUT, count, memory)
        like = _notes(memory.parts()[0], self._key).like
        assert like is not None
        value = self.changed(value, like.kind, x, t, to=False)
        return like.replaced(value, x=x, t=t, **{name: memory.get(f"{OUTPUT} {name}") for name in like.beside()})

    def changed(self, value: Tensor, kind: str, x: Tensor, t: Tensor, to: bool) -> Tensor:
        """A value of a kind in the recipe's coordinate, or back."""
        if kind == self.recipe.coordinate:
            return value
        numbers = scales(self.process, t.double())
        other = coordinate_at(self.recipe.coordinate, *numbers[:2], getattr(self, "data_std", None) or 1.0)
        p, q = conversion(kind, other, *numbers) if to else conversion(other, kind, *numbers)
        return torch.addcmul(expand(p, x) * x, expand(q, x), value)

    def _tell(self, standing: tuple[str, ...], memory: AnyMemory, ran: Sequence[bool] | None = None) -> None:
        """The run's report; ran: for each row whether nothing stood, where that differs."""
        kind = "forecast" if OUTPUT in standing else "part" if standing else "whole"
        held = tell(memory, self._key, kind, None if self.shape is None else self.cost(standing), ran)
        if (most := self.recipe.most_bytes) is not None and held > most:
            raise ValueError(
                f"what this cache keeps takes {held} bytes in this run, more than most_bytes, {most}: a lower order"
                " keeps less, as do coarser parts and fewer samples at a time"
            )

    def cost(self, standing: Sequence[str] = ()) -> float:
        """What an evaluation at which these parts stand costs, in whole evaluations by floating-point operations.

        Counted once, by running the model on one sample. Raises ValueError for a model without a shape.
        """
        names = tuple(standing)
        if self.recipe.ahead is not None and self.recipe.ahead.part in names:
            names = (self.recipe.ahead.through,)
        if not names:
            return 1.0
        if OUTPUT in names:
            return 0.0
        if self._inner is not None:
            return self._inner.cost(names)
        if names not in self._costs:  # of the model itself: what watches a copy would take the sample for the run's
            whole, store = self._original.graft(())
            full = operations(whole)
            graft, given = self._original.graft(names)
            given.update(store)
            given[NOISE] = torch.zeros((), device=self.device)
            self._costs[names] = operations(graft) / full
        return self._costs[names]


def _notes(part: Memory | Rows, key: Any) -> _Notes:
    found: _Notes = part.notes.setdefault(key, _Notes())
    return found


def _known(t: float | None) -> float:
    assert t is not None  # `decide` let nothing stand, and nothing is kept, where the host does not know the time
    return t
