"""Pieces shared by the networks: attention, size checks, layers that start at zero.

Every network of this room is called as `network(x, noise, label=None)`: `x` is (B, C, H, W), `noise` is (B,) or one
number for the batch (a function of the noise level, of order one: EDM's log(sigma) / 4, or a process time in 0 to 1),
NaN or None where it is not known (to a network trained so, `Embedding.hide_noise`), `label` is (B,) integers in 0 to
`classes`, where `classes` itself, like None, means "no label". Networks that are built with `extras`, or `extended` by
them, take further inputs by name (`fewstep.networks.embedding`).

`network.blocks` is a dictionary from names to modules, in the order in which they run, each called exactly once per
forward pass as `block(x, embedding)` and returning the new `x`; `embedding` is (B, W), or (B, 1 + L, W) with the L
words of a caption after it. A name is also the path of the module inside the network
(`network.get_submodule(name)`), so features are read, cached or replaced by name (`fewstep.networks.surgery`).
`network.skippable` are the blocks that can be left out: their input then stands for their output. Attention blocks
have their softmax at `core`, an `Attend`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_Layer = TypeVar("_Layer", bound=nn.Module)


def as_pair(size: int | Sequence[int], name: str = "size") -> tuple[int, int]:
    """`size` as (height, width); a single number is square. Raises ValueError unless both are at least 1."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise ValueError(f"{name} must be a positive integer or (height, width), got {size!r}")
    return pair[0], pair[1]


def plain(size: tuple[int, int]) -> int | list[int]:
    """(height, width) as JSON: one number when square."""
    return size[0] if size[0] == size[1] else list(size)


def head_count(width: int) -> int:
    """The largest number of heads that divide `width` evenly into at least 32 channels each (1 when width < 64).

    Narrower heads are not worth their time: attention with 8 channels per head is several times slower.
    """
    return max(heads for heads in range(1, max(width // 32, 1) + 1) if width % heads == 0)


def vector(embedding: Tensor) -> Tensor:
    """The vector (B, W) of an embedding, which may have words after it, (B, 1 + L, W)."""
    return embedding if embedding.ndim == 2 else embedding[:, 0]


class Attend(nn.Module):
    """The replaceable part of attention: queries, keys and values to the attended values; here softmax attention.

    The attention blocks hold it at their path `core` (`mid.attn.core`), so that `fewstep.networks.surgery.replaced` can
    put something else there: a module that records the maps, merges tokens or changes the attended values.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, words: int) -> Tensor:
        """(B, heads, N, C) from q (B, heads, N, C) and k and v (B, heads, N + words, C).

        The N tokens of the picture come first among keys and values, row by row; the last `words` are those of the
        caption, 0 in a network without captions. `q` are the picture's tokens alone.
        """
        return F.scaled_dot_product_attention(q, k, v)


def attend(qkv: Tensor, heads: int, words: Tensor | None = None, core: nn.Module | None = None) -> Tensor:
    """Attention from stacked queries, keys and values: (B, N, 3 W) to (B, N, W); with `words` (B, L, 2 W), stacked
    keys and values, also to those. `core` is called like `Attend`, and replaces softmax attention where it is given."""
    batch, tokens, triple = qkv.shape
    query, key, value = qkv.view(batch, tokens, 3, heads, triple // (3 * heads)).permute(2, 0, 3, 1, 4)
    if words is not None:
        more = words.view(batch, words.shape[1], 2, heads, triple // (3 * heads)).permute(2, 0, 3, 1, 4)
        key, value = torch.cat([key, more[0]], dim=2), torch.cat([value, more[1]], dim=2)
    if core is None:
        out = F.scaled_dot_product_attention(query, key, value)
    else:
        out = core(query, key, value, 0 if words is None else words.shape[1])
    return out.transpose(1, 2).reshape(batch, tokens, triple // 3)


def zeroed(layer: _Layer) -> _Layer:
    """The layer with all its parameters set to zero, so that its branch starts at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Layer(nn.Module):
    """Self-attention and a perceptron of tokens (B, N, width), each applied to the normalised input and added to it.

    wide: the perceptron's width inside, in units of the outer one. core: in place of softmax attention (`attend`).
    """

    def __init__(self, width: int, wide: int = 2, core: nn.Module | None = None) -> None:
        super().__init__()
        self.heads, self.core = head_count(width), core
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), zeroed(nn.Linear(width, width))
        self.wide, self.narrow = nn.Linear(width, wide * width), zeroed(nn.Linear(wide * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(attend(self.qkv(self.norm1(x)), self.heads, core=self.core))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))
