"""What named blocks of a denoiser's network put out on the way to an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.prediction import Prediction
from fewstep.networks.blocks import blocks_of
from fewstep.networks.surgery import Keep, replaced


def default_blocks(model: Denoiser) -> tuple[str, ...]:
    """The block in the middle of the network, by name.

    Raises:
        ValueError: a network that names no blocks.
    """
    names = list(blocks_of(model))
    return (names[len(names) // 2],)


def last_block(model: Denoiser) -> tuple[str, ...]:
    """The last block of the network, by name; `ValueError` as `default_blocks`."""
    return (list(blocks_of(model))[-1],)


class Read:
    """A denoiser whose calls also give the outputs of some blocks. It shares the model's weights.

    Args:
        blocks: by name, as `blocks_of(model)` has them.

    Raises:
        ValueError: an unknown block, or a network that names none.
    """

    def __init__(self, model: Denoiser, blocks: Sequence[str]) -> None:
        known = blocks_of(model)
        for name in blocks:
            if name not in known:
                raise suggest("block", name, known)
        self.blocks = {name: known[name] for name in blocks}
        self._store: dict[str, Any] = {}
        keeping = {
            block.path: Keep(model.get_submodule(block.path), self._store, name) for name, block in self.blocks.items()
        }
        self.model: Any = replaced(model, keeping)

    def __call__(self, x: Tensor, t: Tensor, condition: Mapping[str, Any]) -> tuple[Prediction, dict[str, Tensor]]:
        """The answer, and the blocks' outputs (B, ...) by name."""
        answer = self.model(x, t, **condition)
        found = {name: block.value(self._store.pop(name)) for name, block in self.blocks.items()}
        return answer, found

    @torch.no_grad()
    def sizes(self, shape: Sequence[int], condition: Mapping[str, Any]) -> dict[str, torch.Size]:
        """The size of each block's output, by name, for one sample of a shape."""
        model = self.model
        x = torch.zeros(1, *shape, dtype=model.dtype, device=model.device)
        t = torch.full((1,), float(model.process.t_max), dtype=torch.float64, device=model.device)
        return {name: out.shape for name, out in self(x, t, condition)[1].items()}
