"""DeepCache: the deep, slowly changing features of a UNet are kept for some evaluations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import AnyMemory, Memory, Part, ask, routed
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction
from fewstep.networks.blocks import blocks_of
from fewstep.networks.surgery import Block, Keep, Skip, Stored, replaced

METHODS = (
    Method(
        "deepcache",
        kind="cache",
        paper="DeepCache: Accelerating Diffusion Models for Free (Ma et al., 2023)",
        arxiv="2312.00858",
        claim="keeps a UNet's deep features for some evaluations and runs its finest level alone",
        use="DeepCache",
        facts={"wraps": True},
    ),
)

KEPT = "deep features"


class DeepCache(Wrapper):
    """The model, whose UNet runs whole at every `every`-th evaluation of a run and only above `level` in between.

    What comes up from the deeper levels is kept from the last whole run (Ma et al., section 3.2, with uniform steps of
    section 3.3) in the run's memory: nothing is kept in the model. Outside a run, and with `every` 1, it is the model
    itself, bit for bit.

    Args:
        every: evaluations from one whole run to the next, at least 1.
        level: the finest level that is kept, from 1.

    Raises:
        ValueError: every or level below 1, a model whose network has no such level.
    """

    def __init__(self, model: Denoiser, every: int = 3, level: int = 1):
        super().__init__(model)
        if isinstance(every, bool) or int(every) != every or every < 1:
            raise ValueError(f"every must be a whole number of at least 1, got {every!r}")
        self.every, self.level = int(every), level
        blocks = blocks_of(model)
        first, last = f"down.{level - 1}.down", f"up.{level}.up"
        if level < 1 or first not in blocks or last not in blocks:
            found = sorted({int(name.split(".")[1]) for name in blocks if name.startswith("up.")})
            raise ValueError(f"the network must be a UNet with a level {level} below its first; it has {found}")
        names = list(blocks)
        self._inside = [blocks[name] for name in names[names.index(first) : names.index(last)]]
        self._end: Block = blocks[last]
        # Around guidance and the like the cache belongs inside, where each row of the network is one of the run's.
        self._at = _innermost(model, self._end.path)
        if self._at:
            inner = model.get_submodule(self._at)
            assert isinstance(inner, Denoiser)
            self.__dict__["_inner"] = DeepCache(inner, every, level)  # beside the table of submodules: it is in `model`

    def config(self) -> dict[str, Any]:
        return {"model": self.model, "every": self.every, "level": self.level}

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | {"cache": f"deep features, whole every {self.every} evaluations"}

    @property
    def carries(self) -> bool:
        return True

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        if memory is None or self.every == 1:
            return ask(self.model, x, t, memory, condition)
        if self._at:
            return ask(self._with({self._at: self._inner}), x, t, memory, condition)

        def whole(part: Memory | Part) -> bool:
            return part.number % self.every == 0 or part.get(KEPT) is None

        return routed(memory, whole, self._answer, x, t, condition)

    def _answer(self, whole: bool, x: Tensor, t: Tensor, memory: AnyMemory, condition: dict[str, Any]) -> Prediction:
        path, store = self._end.path, dict[str, Tensor]()
        end = self.model.get_submodule(path)
        if whole:
            answer = ask(self._with({path: Keep(end, store, KEPT)}), x, t, memory, condition)
            memory.keep(KEPT, store[KEPT])
            return answer
        kept = memory.get(KEPT)
        assert kept is not None
        store[KEPT] = kept
        parts = {block.path: Skip(of=self.model.get_submodule(block.path)) for block in self._inside}
        return ask(self._with({**parts, path: Stored(store, KEPT, of=end)}), x, t, memory, condition)

    def _with(self, parts: dict[str, Any]) -> Denoiser:
        found = replaced(self.model, parts)
        assert isinstance(found, Denoiser)
        return found


def _innermost(model: Denoiser, path: str) -> str:
    """The path of the innermost denoiser that holds a block, "" for the model itself."""
    names = path.split(".")
    holders = [".".join(names[:n]) for n in range(1, len(names))]
    found = [holder for holder in holders if isinstance(model.get_submodule(holder), Denoiser)]
    return found[-1] if found else ""
