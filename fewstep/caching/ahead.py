"""Answers for later evaluations of a run, made in one batch at an earlier one, by a network that does not see the state
there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.caching.parts import Part, Store
from fewstep.core.memory import AnyMemory, Memory, Together
from fewstep.core.memory import Part as Rows
from fewstep.core.prediction import Prediction
from fewstep.networks.surgery import InPlaceOf, replaced

Kept = dict[str, list[tuple[int, float]]]  # of each part its evaluations and log-SNRs


@dataclass(frozen=True, eq=False)
class Ahead:
    """At an evaluation at which nothing stands, the network's answers for the ones that follow are made as well: the
    part `through` stands at their times, in one batch, and `part` is what the network says at each.

    numbers: `(evaluation, evaluations of the run)` to those that follow and are to be made.
    changed: `(answer, memory)`, what becomes of each answer of the model.
    """

    part: str
    through: str
    numbers: Callable[[int, int], Sequence[int]]
    changed: Callable[[Prediction, AnyMemory], Prediction] = lambda answer, memory: answer

    def turn(self, run: Memory | Rows, kept: Kept) -> None:
        """The part may stand where its answer was made, for the numbers of this evaluation; older ones are let go."""
        made: dict[int, Mapping[str, Any]] = run.notes.setdefault(self, {})
        for number in [number for number in made if number < run.number]:
            run.forget(f"{self.part} @{number}")
            del made[number]
        here = run.number in made and run.t is not None and made[run.number] == run.given
        kept[self.part] = [(run.number, 0.0)] if here else []

    def after(
        self,
        cached: Any,
        standing: tuple[str, ...],
        answer: Prediction,
        memory: AnyMemory,
        condition: Mapping[str, Any],
    ) -> Prediction:
        """The model's answer, after which those for later evaluations are made where nothing stood."""
        if not standing:
            self._make(cached, answer, memory, condition)
        return self.changed(answer, memory)

    def _make(self, cached: Any, answer: Prediction, memory: AnyMemory, condition: Mapping[str, Any]) -> None:
        """One call of the model for all rows at all later times; of what it says only the network's answer counts."""
        begin, views, rows = 0, list[_Later](), list[Tensor]()
        for run in memory.parts():
            for number in self.numbers(run.number, len(run.times)):
                views.append(_Later(run, number))
                rows.append(torch.arange(begin, begin + run.rows))
            begin += run.rows
        if not views:
            return
        through, order = cached.recipe.parts[self.through], cached.order(self.through)
        graft, store = cached._made(memory, ("ahead",), lambda: self._graft(cached))
        x, index = answer.x, torch.cat(rows).to(answer.x.device, non_blocking=True)
        times = torch.tensor([view.t for view in views for _ in range(view.rows)], dtype=answer.t.dtype)
        named = {name: v[index] if isinstance(v, Tensor) and v.ndim else v for name, v in condition.items()}
        try:
            for key in through.keys:
                values = []
                for view in views:
                    count = min(len(view.notes[cached._key].kept[self.through]), order)
                    values.append(cached._forecast(self.through, key, count, Together([view])))  # type: ignore[list-item]
                store[key] = torch.cat(values)
            graft(x[index], times.to(x.device, non_blocking=True), **named)
            said = store[self.part].split([view.rows for view in views])
        finally:
            store.clear()
        for view, value in zip(views, said, strict=True):
            view.run.keep(f"{self.part} @{view.number}", value)
            view.notes.setdefault(self, {})[view.number] = dict(view.run.given)
            if order == 1:  # no forecast will go through what is kept
                for number, _ in view.notes[cached._key].kept.pop(self.through, ()):
                    for key in through.keys:
                        view.run.forget(f"{key} @{number}")

    def _graft(self, cached: Any) -> tuple[Any, dict[str, Tensor]]:
        """The model with `through` standing, and the network's answer heard."""
        store: dict[str, Tensor] = {}
        parts = cached.recipe.parts
        inner = replaced(cached.model, parts[self.through].standing(cached.model, store))
        return replaced(inner, parts[self.part].keeping(inner, store)), store


class _Later:
    """A run's memory at a later evaluation, to forecast for."""

    def __init__(self, run: Memory | Rows, number: int):
        self.run, self.number, self.t = run, number, run.times[number]
        self.rows, self.notes, self.get = run.rows, run.notes, run.get

    def parts(self) -> list[_Later]:
        return [self]


@dataclass(frozen=True)
class Network(Part):
    """A whole network, of which the answer is kept: a tensor, alone, in a tuple, or as `sample`, as in diffusers."""

    def keeping(self, model: nn.Module, store: Store) -> dict[str, nn.Module]:
        (block,) = self.blocks
        return {block.path: Heard(model.get_submodule(block.path), store, self.name)}

    def standing(self, model: nn.Module, store: Store, adaptor: nn.Module | None = None) -> dict[str, nn.Module]:
        (block,) = self.blocks
        return {block.path: Said(model.get_submodule(block.path), store, self.name)}


class Heard(InPlaceOf):
    """Runs a network, and keeps its answer."""

    def __init__(self, of: nn.Module, store: Store, key: str):
        super().__init__(of)
        self.inner, self.store, self.key = of, store, key

    def forward(self, *args: Any, **named: Any) -> Any:
        answer = self.inner(*args, **named)
        value = answer[0] if isinstance(answer, tuple) else getattr(answer, "sample", answer)
        self.store[self.key] = value
        return answer


class Said(InPlaceOf):
    """Answers what is in the store in the place of a network, in the form in which the caller asks for it."""

    def __init__(self, of: nn.Module, store: Store, key: str):
        super().__init__(of)
        # A submodule, though it is not run: who asks for the network's dtype or device is told.
        self.inner, self.store, self.key = of, store, key

    def forward(self, *args: Any, **named: Any) -> Any:
        value = self.store[self.key]
        if named.get("return_dict") is False:
            return (value,)
        return Sampled(value) if _diffusers(self.of) else value


@dataclass
class Sampled:
    """As the outputs of diffusers' networks."""

    sample: Tensor

    def __getitem__(self, key: Any) -> Any:
        return self.sample if key == "sample" else (self.sample,)[key]


def _diffusers(network: nn.Module) -> bool:
    return "conv_in" in network._modules
