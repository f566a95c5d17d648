"""A perceptron for data without a grid: points, small vectors, flattened pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.methods import Method
from fewstep.networks.common import zeroed
from fewstep.networks.embedding import Embedding, early_and_late, early_blocks

METHODS = (
    Method(
        "mlp",
        paper="Scalable Diffusion Models with Transformers (Peebles and Xie, 2023)",
        arxiv="2212.09748",
        claim="learns a density in the plane in seconds",
        use="MLP",
        facts={"shape": (3, 2, 4), "small": {"shape": (3, 2, 4), "width": 16, "depth": 2, "classes": 5}},
    ),
)


class Block(nn.Module):
    """x + out(gelu(wide(norm(x) (1 + scale) + shift))), scale and shift from the embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.wide, self.out = nn.Linear(width, 2 * width), zeroed(nn.Linear(2 * width, width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        return x + self.out(F.gelu(self.wide(torch.addcmul(shift, self.norm(x), 1 + scale))))


class MLP(nn.Module):
    """`network(x, noise, label=None, y=None, **extras)`: (B, *shape) to (B, *shape). See `fewstep.networks.common`.

    shape: one sample's shape. width: of the hidden layers. depth: blocks. classes: number of classes, or None.
    picture: how many numbers the condition `y` that goes with x has, 0 for none. out: numbers of the output as a
    multiple of those of x, stacked along its first axis (2 for a mean and a variance). extras, late: further inputs,
    and how many blocks read the target (`fewstep.networks.embedding`).
    """

    def __init__(
        self,
        shape: Sequence[int] = (2,),
        width: int = 64,
        depth: int = 3,
        classes: int | None = None,
        picture: int = 0,
        out: int = 1,
        extras: Mapping[str, int] | None = None,
        late: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.width, self.depth = tuple(shape), width, depth
        self.classes, self.picture, self.out_factor = classes, picture, out
        numbers = math.prod(self.shape)
        if min(numbers, width, depth, out) < 1:
            raise ValueError(f"shape, width, depth and out must be positive, got {shape}, {width}, {depth}, {out}")
        self.embedding = Embedding(width, classes, extras=extras, late=late)
        self.first = nn.Linear(numbers + picture, width)
        self.block = nn.ModuleList(Block(width) for _ in range(depth))
        self.last_norm = nn.LayerNorm(width)
        self.last = zeroed(nn.Linear(width, out * numbers))
        self.early = early_blocks(self)

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """The blocks by name, in the order in which they run."""
        return {f"block.{index}": module for index, module in enumerate(self.block)}

    @property
    def skippable(self) -> dict[str, nn.Module]:
        """The blocks that add to their input and keep its shape: all of them."""
        return self.blocks

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON, with the registered name under "network"."""
        return {
            "network": "mlp",
            "shape": list(self.shape),
            "width": self.width,
            "depth": self.depth,
            "classes": self.classes,
            "picture": self.picture,
            "out": self.out_factor,
            **self.embedding.options,
        }

    def forward(
        self,
        x: Tensor,
        noise: Tensor | None,
        label: Tensor | None = None,
        y: Tensor | None = None,
        **extras: Tensor | None,
    ) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        flat = x.flatten(1)
        if self.picture:
            if y is None or y.flatten(1).shape != (x.shape[0], self.picture):
                given = "nothing" if y is None else tuple(y.shape)
                raise ValueError(f"y must hold {self.picture} numbers a sample, got {given}")
            flat = torch.cat([flat, y.to(x.dtype).flatten(1)], dim=1)
        elif y is not None:
            raise ValueError("this network was built without a picture (picture=0), but y was given")
        early, late = early_and_late(self.embedding, noise, label, x.shape[0], extras)
        hidden = self.first(flat)
        for index, block in enumerate(self.block):
            hidden = block(hidden, early if index < self.early else late)
        out = self.last(self.last_norm(hidden))
        return out.view(x.shape[0], self.out_factor * self.shape[0], *self.shape[1:])
