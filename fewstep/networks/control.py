"""Control of a UNet by a picture, or one a frame: what it shows is added to the blocks, zero at the start."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.networks.common import vector, zeroed
from fewstep.networks.surgery import InPlaceOf
from fewstep.networks.temporal import moments
from fewstep.networks.unet import Residual, UNet, grid


class Control(nn.Module):
    """`control(network, picture)`: the modules that stand in the place of a network's blocks while it sees a picture.

    Convolutions bring the picture to the width and the resolution of each level (Mou et al., "T2I-Adapter", 2023).
    Beside every residual block on the way down and in the middle a small one reads that, told what the block itself is
    told, the noise level and the caption, and the number of the frame; what it gives is added to the block's output.
    Its last layer starts at zero (Zhang et al., "Adding Conditional Control", 2023): the network's answers are then its
    own, bit for bit. The network's weights are read alone.

    Args:
        network: a UNet, of pictures or of clips, whose weights these are for. channels: of the picture.
    """

    def __init__(self, network: UNet, channels: int) -> None:
        super().__init__()
        self.patch, self.frames = network.patch, int(getattr(network, "frames", 1))
        self.first = nn.Conv2d(channels * self.patch**2 + 2, network.width[0], 3, padding=1)
        self.deeper = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(network.width))
        self.levels = {
            name: network.levels[name]
            for name, block in network.blocks.items()
            if isinstance(block, Residual) and not name.startswith("up")
        }
        self.beside = nn.ModuleDict(
            {
                name.replace(".", "/"): Beside(network.width[level], network.embedding_width, self.frames)
                for name, level in self.levels.items()
            }
        )
        like = next(network.parameters())
        self.to(like.device, like.dtype)

    def seen(self, picture: Tensor) -> list[Tensor]:
        """What pictures (N, P, H, W) show at each level, (N, width, H / patch / 2^level, ...), the finest first."""
        folded = F.pixel_unshuffle(picture, self.patch)
        found = [F.silu(self.first(torch.cat([folded, grid(folded)], dim=1)))]
        for layer in self.deeper:
            found.append(F.silu(layer(F.avg_pool2d(found[-1], 2))))
        return found

    def forward(self, network: nn.Module, picture: Tensor) -> dict[str, nn.Module]:
        """The modules by their paths in `network`. picture: (B, P, H, W), of a clip for all of its frames, or one for
        each of them, (B, T, P, H, W)."""
        seen = self.seen(picture.flatten(0, -4).to(self.first.weight.dtype))
        return {
            name: _Both(network.get_submodule(name), beside, seen[level])
            for (name, level), beside in zip(self.levels.items(), self.beside.values(), strict=True)
        }


class Beside(nn.Module):
    """What stands beside one block: (B, C, h, w) of the picture, or (B T, C, h, w) of one a frame, to (B T, C, h, w),
    the frames of a clip one after another."""

    place: Tensor

    def __init__(self, channels: int, embedding: int, frames: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels)
        self.last = zeroed(nn.Conv2d(channels, channels, 1))
        self.register_buffer("place", moments(frames, embedding), persistent=False)

    def forward(self, seen: Tensor, embedding: Tensor) -> Tensor:
        told, frames = vector(embedding), len(self.place)
        told = told + self.place.to(told.dtype).repeat(len(told) // frames, 1)
        scale, shift = self.modulation(told)[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv(seen)
        hidden = hidden.repeat_interleave(len(told) // len(hidden), 0)
        return self.last(F.silu(torch.addcmul(shift, hidden, 1 + scale)))  # type: ignore[no-any-return]


class _Both(InPlaceOf):
    """In the place of a block: what it gives, and what stands beside it."""

    def __init__(self, block: nn.Module, beside: nn.Module, seen: Tensor) -> None:
        super().__init__(block)
        self.block, self.beside, self.seen = block, beside, seen

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.block(x, embedding) + self.beside(self.seen, embedding)  # type: ignore[no-any-return]
