"""The ways in which a cached model runs an evaluation as modules of tensors alone, so that each is one graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fewstep.caching.common import Cached
from fewstep.caching.recipe import OUTPUT
from fewstep.core.memory import Memory
from fewstep.core.prediction import Prediction


class Mode(nn.Module):
    """A cached model at an evaluation where the parts `standing` stand.

    What stands is taken from `store`, what is to be kept is put there: neither is part of a graph. Called as the model.
    """

    cached: Cached

    def __init__(self, cached: Cached, standing: tuple[str, ...]):
        super().__init__()
        self.__dict__["cached"] = cached  # its weights are those of `inner`
        self.standing, self.process, self.kind = standing, cached.process, ""
        self.inner: nn.Module | None
        self.inner, self.store = (None, dict[str, Tensor]()) if OUTPUT in standing else cached.graft(standing)
        self.answers = OUTPUT in cached.recipe.parts and not standing

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        if self.inner is None:
            value = self.cached.changed(self.store[OUTPUT], self.kind, x, t, to=False)
            return Prediction(value, self.kind, x, t, self.process)
        found: Prediction = self.inner(x, t, **condition)
        if self.answers:
            self.store[OUTPUT] = self.cached.changed(found.value, found.kind, x, t, to=True)
        return found


class Modes:
    """The modes of a cached model, each made when it is first met; `at` gives that of an evaluation, filled, and `keep`
    takes what it has put into its store."""

    def __init__(self, cached: Cached):
        self.cached, self.made = cached, dict[tuple[str, ...], Mode]()

    def at(self, memory: Memory, kind: str) -> Mode:
        """The mode of the memory's evaluation; `kind` is the model's kind of prediction."""
        standing = self.cached.decide(memory) or ()
        names = tuple(name for name, _ in standing)
        if names not in self.made:
            self.made[names] = Mode(self.cached, names)
        mode = self.made[names]
        mode.kind = kind
        self.cached.fill(standing, mode.store, memory)
        return mode

    def keep(self, mode: Mode, memory: Memory) -> None:
        """Keep what the evaluation has run."""
        self.cached.settle(mode.standing, mode.store, memory)
        mode.store.clear()
