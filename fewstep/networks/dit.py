"""A compact diffusion transformer: patches as tokens, adaptive layer norm that starts at zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.methods import Method
from fewstep.networks.common import Attend, as_pair, attend, head_count, plain, zeroed
from fewstep.networks.embedding import Embedding, early_and_late, early_blocks

METHODS = (
    Method(
        "dit",
        paper="Scalable Diffusion Models with Transformers (Peebles and Xie, 2023)",
        arxiv="2212.09748",
        claim="a transformer over patches as the backbone",
        use="DiT",
        facts={
            "shape": (3, 8, 12),
            "small": {"channels": 3, "size": (8, 12), "width": 64, "depth": 2, "classes": 5, "dropout": 0.25},
        },
    ),
)


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of each patch's row (first half of the channels) and column, (rows * columns, width)."""
    rates = 100.0 ** -torch.linspace(0, 1, width // 4)
    halves = [torch.arange(count)[:, None] * rates for count in (rows, columns)]
    row, column = (torch.cat([phase.sin(), phase.cos()], dim=1) for phase in halves)
    grid = row[:, None].expand(rows, columns, -1), column[None].expand(rows, columns, -1)
    return torch.cat(grid, dim=2).flatten(0, 1)


class Branch(nn.Module):
    """x + gate * inner(norm(x) * (1 + scale) + shift), the three from the embedding and zero at the start."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = zeroed(nn.Linear(embedding, 3 * width))

    def inner(self, x: Tensor, *beside: Tensor) -> Tensor:
        raise NotImplementedError

    def entering(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """norm(x) * (1 + scale) + shift, and the gate (B, 1, W)."""
        scale, shift, gate = self.modulation(embedding)[:, None].chunk(3, dim=2)
        return torch.addcmul(shift, self.norm(x), 1 + scale), gate

    def forward(self, x: Tensor, embedding: Tensor, *beside: Tensor) -> Tensor:
        inside, gate = self.entering(x, embedding)
        return x + gate * self.inner(inside, *beside)


class Attention(Branch):
    """Self-attention over all patches, and to the keys and values (B, L, 2 W) of something `beside` them."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__(width, embedding)
        self.heads = head_count(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.core = Attend()
        self.out = nn.Linear(width, width)

    def inner(self, x: Tensor, *beside: Tensor) -> Tensor:
        return self.out(attend(self.qkv(x), self.heads, beside[0] if beside else None, self.core))


class Perceptron(Branch):
    """Two layers on each patch, four times as wide in between."""

    def __init__(self, width: int, embedding: int, dropout: float) -> None:
        super().__init__(width, embedding)
        self.wide = nn.Linear(width, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(4 * width, width)

    def inner(self, x: Tensor, *beside: Tensor) -> Tensor:
        return self.out(self.dropout(F.gelu(self.wide(x), approximate="tanh")))


class DiT(nn.Module):
    """`network(x, noise, label=None, **extras)`: (B, C, H, W) to (B, C, H, W). See `fewstep.networks.common`.

    channels: C. size: the height and width of its images (a number when square). patch: the side of a patch.
    width: channels of a token, a multiple of 4. depth: how many pairs of attention and perceptron. classes: number
    of classes, or None. dropout: within the perceptrons. extras, late: further inputs, and how many blocks read the
    target (`fewstep.networks.embedding`).

    Positions are fixed sines in two dimensions. Blocks, in order: `block.0.attn`, `block.0.mlp`, `block.1.attn`, ...

    Raises ValueError for sizes that are not multiples of the patch, and for images of another size.
    """

    place: Tensor

    def __init__(
        self,
        channels: int = 1,
        size: int | Sequence[int] = 8,
        patch: int = 2,
        width: int = 96,
        depth: int = 4,
        classes: int | None = 10,
        dropout: float = 0.0,
        extras: Mapping[str, int] | None = None,
        late: int = 0,
    ) -> None:
        super().__init__()
        self.channels, self.size, self.patch = channels, as_pair(size), patch
        self.width, self.depth, self.classes, self.dropout = width, depth, classes, dropout
        if min(channels, patch, width, depth) < 1 or width % 4:
            raise ValueError(
                "channels, patch and depth must be at least 1 and width a multiple of 4, "
                f"got channels={channels}, patch={patch}, depth={depth}, width={width}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        height, wide = self.size
        if height % patch or wide % patch:
            raise ValueError(f"images of {height}x{wide} do not divide into patches of {patch}x{patch}")
        self.embedding = Embedding(width, classes, extras=extras, late=late)
        self.first = nn.Linear(channels * patch**2, width)
        self.register_buffer("place", positions(height // patch, wide // patch, width), persistent=False)
        self.block = nn.ModuleList(
            nn.ModuleDict({"attn": Attention(width, width), "mlp": Perceptron(width, width, dropout)})
            for _ in range(depth)
        )
        self.last_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.last_modulation = zeroed(nn.Linear(width, 2 * width))
        self.last = zeroed(nn.Linear(width, channels * patch**2))
        self.early = early_blocks(self)

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """The blocks by name, in the order in which they run."""
        return {
            f"block.{index}.{name}": module
            for index, pair in enumerate(self.block)
            for name, module in pair.items()  # type: ignore[operator]
        }

    @property
    def skippable(self) -> dict[str, nn.Module]:
        """The blocks that add to their input and keep its shape: all of them."""
        return self.blocks

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON, with the registered name under "network"."""
        return {
            "network": "dit",
            "channels": self.channels,
            "size": plain(self.size),
            "patch": self.patch,
            "width": self.width,
            "depth": self.depth,
            "classes": self.classes,
            "dropout": self.dropout,
            **self.embedding.options,
        }

    def tokens(self, x: Tensor) -> Tensor:
        """A picture's patches, with their places, (B, N, W). Raises ValueError for one of another shape."""
        if x.ndim != 4 or x.shape[1:] != (self.channels, *self.size):
            expected = f"(B, {self.channels}, {self.size[0]}, {self.size[1]})"
            raise ValueError(f"x must have shape {expected}, got {tuple(x.shape)}")
        tokens = self.first(F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2))
        return tokens + self.place.to(tokens.dtype)

    def picture(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """The answer (B, C, H, W) in the tokens behind the last block."""
        scale, shift = self.last_modulation(embedding)[:, None].chunk(2, dim=2)
        out = self.last(torch.addcmul(shift, self.last_norm(tokens), 1 + scale)).transpose(1, 2)
        return F.pixel_shuffle(out.unflatten(2, [side // self.patch for side in self.size]), self.patch)

    def forward(self, x: Tensor, noise: Tensor | None, label: Tensor | None = None, **extras: Tensor | None) -> Tensor:
        tokens = self.tokens(x)
        early, late = early_and_late(self.embedding, noise, label, x.shape[0], extras)
        for index, module in enumerate(self.blocks.values()):
            tokens = module(tokens, early if index < self.early else late)
        return self.picture(tokens, late)
