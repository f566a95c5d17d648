"""What every block adds, as parts that may stand still one by one: of residual blocks with a changed shortcut as well.

A block that keeps its input's shape is a residual part. One that changes the channels adds to a shortcut instead (a
convolution of one pixel, or a change of the resolution): there the answer of the branch's last layer is kept, and the
shortcut runs, so that what changes before the block still gets through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fewstep.caching.parts import Kept, Part, Store
from fewstep.core.errors import suggest
from fewstep.networks.blocks import networks_of
from fewstep.networks.surgery import Block, InPlaceOf

# The last layer of the branch of a residual block, and the one of its shortcut, in our networks or those of diffusers.
LAST, SHORT = "conv2", ("conv_shortcut", "skip")


@dataclass(frozen=True)
class Branch(Part):
    """A residual block of which the answer of the branch's last layer is kept, and the shortcut always runs."""

    def keeping(self, model: nn.Module, store: Store) -> dict[str, nn.Module]:
        last = Block(f"{self.blocks[0].path}.{LAST}")
        return {last.path: Kept(model.get_submodule(last.path), last, store, self.keys, None)}

    def standing(self, model: nn.Module, store: Store, adaptor: nn.Module | None = None) -> dict[str, nn.Module]:
        (block,) = self.blocks
        return {block.path: OnShortcut(model.get_submodule(block.path), block, store, self.name)}


class OnShortcut(InPlaceOf):
    """Replaces a residual block by its shortcut plus what is in the store."""

    def __init__(self, of: nn.Module, block: Block, store: Store, key: str):
        super().__init__(of)
        self.block, self.store, self.key = block, store, key

    def forward(self, *args: Any, **named: Any) -> Any:
        x = shortcut(self.of)(self.block.taken(args, named))
        value = (x + self.store[self.key]) / getattr(self.of, "output_scale_factor", 1.0)
        return self.block.answer(value, args, named)


def shortcut(residual: nn.Module) -> Callable[[Tensor], Tensor]:
    """What the branch of a residual block is added to, as a function of the block's input."""
    # In diffusers' blocks the change of resolution may be a function.
    layers = [getattr(residual, name, None) for name in ("upsample", "downsample", *SHORT)]

    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = x if layer is None else layer(x)
        return x

    return run


def branches(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, Part]:
    """What each block adds to its input or its shortcut, or each of these blocks, as parts by name, in running order.

    Raises:
        ValueError: a network that names no blocks; a name of none of them, or of a block that adds to nothing.
    """
    found: dict[str, Part] = {}
    for name, block in networks_of(model)[0].items():
        module = model.get_submodule(block.path)
        if block.skippable:
            found[name] = Part(name, (block,), True)
        elif LAST in module._modules and any(hasattr(module, one) for one in SHORT):
            found[name] = Branch(name, (block,), False)
    for name in (name for name in names or () if name not in found):
        raise suggest("block", name, found)
    return found if names is None else {name: part for name, part in found.items() if name in names}
