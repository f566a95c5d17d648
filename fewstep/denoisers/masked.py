"""A denoiser whose network leaves out some of its blocks, different ones at each time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.errors import suggest
from fewstep.core.memory import AnyMemory, ask, routed
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction, joined
from fewstep.denoisers.operations import operations
from fewstep.networks.blocks import blocks_of
from fewstep.networks.surgery import Block, without

METHODS = (
    Method(
        "masked",
        paper="AutoDiffusion: Training-Free Optimization of Time Steps and Architectures (Li et al., 2023)",
        arxiv="2309.10438",
        claim="residual blocks left out by name at chosen times, without touching the network",
        use="MaskedDenoiser",
        facts={"wraps": True},
    ),
)


def _skippable(model: nn.Module) -> dict[str, Block]:
    if not (found := {name: block for name, block in blocks_of(model).items() if block.skippable}):
        raise ValueError("no block of this model's network can be left out: its `skippable` is empty")
    return found


def skippable(model: nn.Module) -> dict[str, str]:
    """The blocks that can be left out: name -> path in the model, in the order in which they run.

    They are those of `fewstep.networks.blocks.blocks_of` that add to their input and keep its shape.

    Raises:
        ValueError: no submodule names its blocks, or none of them can be left out.
    """
    return {name: block.path for name, block in _skippable(model).items()}


class MaskedDenoiser(Wrapper):
    """`model` with `masks[t]`, names of blocks, left out at the times t; at other times, and without masks, `model`.

    A time matches within a relative 1e-6 of the clock, so that float32 times find their mask. The host decides what
    runs: a run's memory holds the time, which is read from the tensor outside a run. Threads may share it and the
    model: neither is changed.

    Raises:
        ValueError: a model whose blocks have no names, a block that it does not have.
    """

    def __init__(self, model: Denoiser, masks: Mapping[float, Collection[str]]):
        super().__init__(model)
        self.masks = {float(t): tuple(names) for t, names in dict(masks).items() if len(names)}
        blocks = _skippable(model) if self.masks else {}
        for name in (name for names in self.masks.values() for name in names):
            if name not in blocks:
                raise suggest("block", name, blocks)

    def config(self) -> dict[str, Any]:
        return {"model": self.model, "masks": list(self.masks.items())}  # JSON has no numbers for keys

    def mask(self, t: float) -> tuple[str, ...]:
        """The names of the blocks that are left out at time t."""
        near = min(self.masks, key=lambda key: abs(key - t), default=None)
        clock = abs(self.process.t_max - self.process.t_zero)
        return self.masks[near] if near is not None and abs(near - t) <= 1e-6 * max(abs(t), 1e-3 * clock) else ()

    @property
    def carries(self) -> bool:
        return bool(self.masks) or self.model.carries

    def forward(self, x: Tensor, t: Tensor, *, memory: AnyMemory | None = None, **condition: Any) -> Prediction:
        if not self.masks:
            return ask(self.model, x, t, memory, condition)
        if memory is None:
            return self._by_reading(x, t, condition)

        def answer(
            time: float | None, x: Tensor, t: Tensor, memory: AnyMemory, condition: dict[str, Any]
        ) -> Prediction:
            if time is None:  # a sampler whose samples have times of their own
                memory.count(len(x))
                return self._by_reading(x, t, condition)
            return ask(self._at(time), x, t, memory, condition)

        return routed(memory, lambda part: part.t, answer, x, t, condition)

    def _by_reading(self, x: Tensor, t: Tensor, condition: dict[str, Any]) -> Prediction:
        times = t.unique().tolist()
        if len(times) == 1:
            return self._at(times[0])(x, t, **condition)
        parts = []  # samples at different times, with masks of their own
        for time in times:
            rows = (t == time).nonzero().squeeze(1)
            named = {name: c[rows] if isinstance(c, Tensor) and c.ndim else c for name, c in condition.items()}
            parts.append((rows, self._at(time)(x[rows], t[rows], **named)))
        return joined(parts, x, t)

    def _at(self, time: float) -> Denoiser:
        """The model at a time."""
        names = self.mask(time)
        # Where they are now: what goes around this one may have put a cache between it and the network.
        # A block that is out already may have no name any more.
        blocks = blocks_of(self.model) if names else {}
        found = without(self.model, [blocks[name] for name in names if name in blocks])
        assert isinstance(found, Denoiser)
        return found


def flops(model: Denoiser, names: Collection[str] = ()) -> int:
    """Floating-point operations (two per multiply-add) of one evaluation of one sample, blocks left out by name.

    Raises:
        ValueError: a model without a shape, blocks without names.
    """
    blocks = _skippable(model) if names else {}
    if unknown := [name for name in names if name not in blocks]:
        raise suggest("block", unknown[0], blocks)
    return operations(without(model, [blocks[name] for name in names]))
