"""Pieces shared by the networks: the embedding of noise level and class, attention, size checks.

Every network of this room is called as `network(x, noise, label=None)`: `x` is (B, C, H, W), `noise` is (B,) or one
number for the batch (a function of the noise level, of order one: EDM's log(sigma) / 4, or a process time in 0 to 1),
NaN or None where it is not known (to a network trained so, `Embedding.hide_noise`), `label` is (B,) integers in 0 to
`classes`, where `classes` itself, like None, means "no label".

`network.blocks` is a dictionary from names to modules, in the order in which they run, each called exactly once per
forward pass as `block(x, embedding)` and returning the new `x`; `embedding` is (B, W), or (B, 1 + L, W) with the L
words of a caption after it. A name is also the path of the module inside the network
(`network.get_submodule(name)`), so features are read, cached or replaced by name (`fewstep.networks.surgery`).
`network.skippable` are the blocks that can be left out: their input then stands for their output. Attention blocks
have their softmax at `core`, an `Attend`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Angular frequencies of the Fourier features, in radians per unit of `noise`. The lowest is monotone over a range of
# six; the highest resolves a hundredth. Much higher ones would make the output rough in t, which consistency and
# flow-map training differentiate.
LOWEST, HIGHEST = 0.5, 32.0

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


class Embedding(nn.Module):
    """Noise level and class as one vector: MLP(Fourier features of `noise`) + a row of a table, (B, width).

    The table has one row more than there are classes; the last one means "no label", as classifier-free
    guidance needs (Ho and Salimans, 2022, arXiv:2207.12598). After `hide_noise` there is also a learned vector
    `unknown` in place of the perceptron's, for a noise level that is None, or NaN in some rows.
    """

    frequencies: Tensor
    unknown: nn.Parameter | None

    def __init__(self, width: int, classes: int | None, features: int = 64) -> None:
        super().__init__()
        if classes is not None and classes < 1:
            raise ValueError(f"classes must be at least 1, or None for an unconditional network, got {classes}")
        self.classes = classes
        exponents = torch.linspace(math.log(LOWEST), math.log(HIGHEST), features // 2)
        self.register_buffer("frequencies", exponents.exp(), persistent=False)
        self.first, self.second = nn.Linear(features, width), nn.Linear(width, width)
        if classes is not None:
            self.label = nn.Embedding(classes + 1, width)
            nn.init.normal_(self.label.weight, std=width**-0.5)
        self.register_parameter("unknown", None)

    def hide_noise(self) -> None:
        """Adds the vector for an unknown noise level, zero at first; it has none before, so old weights still fit."""
        if self.unknown is None:
            self.unknown = nn.Parameter(torch.zeros_like(self.second.bias))

    def _noise(self, noise: Tensor | None, batch: int) -> Tensor:
        if noise is None:
            if self.unknown is None:
                raise ValueError("this network was not trained for an unknown noise level (noise_dropout), but noise is"
                                 " None")  # fmt: skip
            return self.unknown.expand(batch, -1)
        if noise.shape not in ((), (batch,)):
            raise ValueError(f"noise must be one number or have shape ({batch},), got {tuple(noise.shape)}")
        # The phases are taken in float32 whatever the network computes in: bfloat16 would round the noise level.
        level = noise.float().expand(batch)[:, None]
        hidden = None if self.unknown is None else level.isnan()
        if hidden is not None:
            level = level.masked_fill(hidden, 0.0)  # the gradient of a NaN that is chosen away is still NaN
        phase = level * self.frequencies.float()
        features = torch.cat([phase.cos(), phase.sin()], dim=1)
        out = self.second(F.silu(self.first(features.to(self.first.weight.dtype))))
        return out if hidden is None or self.unknown is None else torch.where(hidden, self.unknown, out)

    def forward(self, noise: Tensor | None, label: Tensor | None, batch: int) -> Tensor:
        out = self._noise(noise, batch)
        if self.classes is None:
            if label is not None:
                raise ValueError("this network was built without classes (classes=None), but a label was given")
            return out
        if label is None:
            label = torch.full((batch,), self.classes, device=out.device)
        elif label.shape != (batch,) or label.is_floating_point() or label.dtype == torch.bool:
            raise ValueError(
                f"label must be {batch} integers in 0 to {self.classes} ({self.classes} means no label), "
                f"got shape {tuple(label.shape)} of {label.dtype}"
            )
        return out + self.label(label)
