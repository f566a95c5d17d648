"""Attention to words under control: what is read of other words alone is taken away from what is read.

With `Z+` what a network's attention gives and `Z-` the attention of the same queries over other words alone, the
networks of this file have `Z+ - alpha Z-` before the layer that follows. They share all else with the model they are
made from (`fewstep.networks.surgery`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.networks.blocks import networks_of
from fewstep.networks.surgery import Block, InPlaceOf, replaced


class Less(nn.Module):
    """The rule `core`, less `alpha` times softmax attention over other words alone.

    words: their stacked keys and values (R, L, 2 W); R is 1, for all rows, or the batch.
    """

    def __init__(self, core: nn.Module, words: Tensor, alpha: float) -> None:
        super().__init__()
        self.core, self.words, self.alpha = core, words, alpha

    def forward(self, q: Tensor, k: Tensor, v: Tensor, words: int) -> Tensor:
        batch, heads, _, width = q.shape
        if self.words.shape[0] not in (1, batch):
            raise ValueError(
                f"there are words to keep away from for {self.words.shape[0]} samples, and the network is called with"
                f" {batch} rows: give one caption for all"
            )
        key, value = self.words.unflatten(2, (2, heads, width)).permute(2, 0, 3, 1, 4).expand(-1, batch, -1, -1, -1)
        return self.core(q, k, v, words) - self.alpha * F.scaled_dot_product_attention(q, key, value)


class LessOf(InPlaceOf):
    """In the place of diffusers' attention to words, which is called with the words and, after the first `count`, those
    to keep away from: its processor reads both, and answers with the difference.

    The last layer is linear, so the bias and the residual, its answer to nothing, are left out of what is taken away.
    """

    def __init__(self, of: nn.Module, count: int, alpha: float) -> None:
        super().__init__(of)
        self.count, self.alpha = count, alpha

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        if encoder_hidden_states.shape[1] <= self.count:
            raise ValueError("the network is called without the words to keep away from: guide by 'nasa' first, and by"
                             " other methods around it")  # fmt: skip
        of: Any = self.of
        own, other = (
            of(
                hidden_states,
                encoder_hidden_states=encoder_hidden_states[:, part],
                attention_mask=None if attention_mask is None else attention_mask[..., part],
                **options,
            )
            for part in (slice(None, self.count), slice(self.count, None))
        )
        nothing = of.to_out[0](hidden_states.new_zeros(1, 1, of.inner_dim))
        nothing = nothing + hidden_states if of.residual_connection else nothing
        return own - self.alpha * (other - nothing / of.rescale_output_factor)  # type: ignore[no-any-return]


def check_reads_words(model: nn.Module) -> None:
    """`ValueError` for a model none of whose networks has attention to words, and for one whose attention is joint with
    words that change from block to block (SD3, Flux): other words have no keys there."""
    networks = networks_of(model)
    if any(_readers(model, blocks) for blocks in networks):
        return
    joint = {type(model.get_submodule(block.path)).__name__ for b in networks for block in b.values() if block.beside}
    if joint:
        raise ValueError(
            f"the words of this network ({', '.join(sorted(joint))}) change with the picture from block to block: what"
            " is read of other words cannot be taken away"
        )
    raise ValueError("this network reads no words: none of its blocks attends to a caption")


def less_words(model: nn.Module, caption: Tensor, alpha: float) -> nn.Module:
    """Our networks less `alpha` times what they read of a caption (R, L), in indices, as their own encoder has it.

    A block that something has put out of the way, a mask or a cache, is left as it is.
    """
    parts: dict[str, nn.Module] = {}
    for blocks in networks_of(model):
        readers = [(name, block) for name, block in _readers(model, blocks) if block.path.endswith(name)]
        words: Tensor | None = None
        for name, block in readers:
            module: Any = model.get_submodule(block.path)
            if words is None:
                network: Any = model.get_submodule(block.path[: -len(name)].rstrip("."))
                words = network.text(caption)
            parts[f"{block.path}.core"] = Less(module.core, module.words(words), alpha)
    return replaced(model, parts)


def less_tokens(model: nn.Module, count: int, alpha: float) -> nn.Module:
    """Networks of diffusers less `alpha` times what they read of the tokens after the first `count`."""
    found = [path for blocks in networks_of(model) for block in blocks.values() for path in _tokens(model, block)]
    return replaced(model, {path: LessOf(model.get_submodule(path), count, alpha) for path in found})


def _readers(model: nn.Module, blocks: dict[str, Block]) -> list[tuple[str, Block]]:
    """The blocks that attend to words, by name."""
    return [(name, block) for name, block in blocks.items() if _words(model, block) or any(_tokens(model, block))]


def _words(model: nn.Module, block: Block) -> bool:
    """Whether it is one of ours that attends to words."""
    inside = model.get_submodule(block.path)._modules
    return inside.get("core") is not None and inside.get("words") is not None


def _tokens(model: nn.Module, block: Block) -> Iterator[str]:
    """The paths of diffusers' attention to words in a block."""
    for name, part in model.get_submodule(block.path).named_modules():
        if isinstance(part, LessOf):
            continue
        if getattr(part, "is_cross_attention", False) and getattr(part, "added_kv_proj_dim", None) is None:
            yield f"{block.path}.{name}" if name else block.path
