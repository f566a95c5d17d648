"""A fully convolutional network with a small receptive field: any size of picture, nothing beyond a few pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.methods import Method
from fewstep.networks.common import zeroed
from fewstep.networks.embedding import Embedding, early_and_late, early_blocks

METHODS = (
    Method(
        "convolution",
        paper="SinDDM: A Single Image Denoising Diffusion Model (Kulikov et al., 2023)",
        arxiv="2211.16582",
        claim="the output depends on no pixel beyond the receptive field; pictures may have any size",
        use="Convolution",
        facts={"shape": (2, 7, 5), "small": {"channels": 2, "width": 8, "depth": 3, "classes": 5}},
    ),
)


class Near(nn.Module):
    """x + 1x1(silu(3x3(norm(x)) (1 + scale) + shift)), each pixel normalised over its own channels only.

    A group norm would let every pixel see all others.
    """

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect")
        self.modulation = nn.Linear(embedding, 2 * width)
        self.out = zeroed(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv(x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6))
        return x + self.out(F.silu(torch.addcmul(shift, hidden, 1 + scale)))


class Convolution(nn.Module):
    """`network(x, noise, label=None, **extras)`: (B, C, H, W) to (B, C, H, W), H and W at least 2.

    See `fewstep.networks.common`.

    channels: C. width: of the hidden layers. depth: blocks; the receptive field is 3 + 2 depth pixels wide. classes:
    number of classes (a pyramid's scales, for example), or None. extras, late: further inputs, and how many blocks read
    the target (`fewstep.networks.embedding`).
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 32,
        depth: int = 4,
        classes: int | None = None,
        extras: Mapping[str, int] | None = None,
        late: int = 0,
    ) -> None:
        super().__init__()
        if min(channels, width, depth) < 1:
            raise ValueError(f"channels, width and depth must be at least 1, got {channels}, {width} and {depth}")
        self.channels, self.width, self.depth, self.classes = channels, width, depth, classes
        self.embedding = Embedding(2 * width, classes, extras=extras, late=late)
        self.first = nn.Conv2d(channels, width, 3, padding=1, padding_mode="reflect")
        self.block = nn.ModuleList(Near(width, 2 * width) for _ in range(depth))
        self.last = zeroed(nn.Conv2d(width, channels, 1))
        self.early = early_blocks(self)

    @property
    def receptive_field(self) -> int:
        """Width, in pixels, of the square that one output pixel depends on."""
        return 3 + 2 * self.depth

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
        arguments = {"channels": self.channels, "width": self.width, "depth": self.depth, "classes": self.classes}
        return {"network": "convolution"} | arguments | self.embedding.options

    def forward(self, x: Tensor, noise: Tensor | None, label: Tensor | None = None, **extras: Tensor | None) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.channels or min(x.shape[2:]) < 2:
            raise ValueError(f"x must be (B, {self.channels}, H, W) with sides of at least 2, got {tuple(x.shape)}")
        early, late = early_and_late(self.embedding, noise, label, len(x), extras)
        hidden = self.first(x)
        for index, block in enumerate(self.block):
            hidden = block(hidden, early if index < self.early else late)
        return self.last(F.silu(hidden))
