"""A compact UNet: residual blocks with adaptive group norm, attention at chosen resolutions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.networks.common import Attend, as_pair, attend, head_count, plain, vector, zeroed
from fewstep.networks.condconv import CondConv2d
from fewstep.networks.embedding import Embedding, early_and_late, early_blocks
from fewstep.networks.text import TextEncoder

METHODS = (
    Method(
        "unet",
        paper="Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021)",
        arxiv="2105.05233",
        claim="trains on 8x8 digits in minutes on a CPU",
        use="UNet",
        facts={
            "shape": (3, 8, 12),
            "small": {
                "channels": 3,
                "size": (8, 12),
                "width": (16, 24),
                "blocks": 2,
                "attention": (2, 4),
                "classes": 5,
                "patch": 2,
                "embedding": 40,
                "dropout": 0.25,
                "vocabulary": 6,
                "captions": 4,
                "places": True,
                "drop": ("down.0.res1", "mid.attn"),
                "experts": 2,
            },
        },
    ),
)


def levels_of(levels: nn.ModuleList) -> list[nn.ModuleDict]:
    """The levels of a side of a UNet, 0 the finest."""
    return [level for level in levels if isinstance(level, nn.ModuleDict)]


def _steps(index: int, modules: nn.ModuleDict) -> list[str]:
    """The blocks of a level that run between two of its skips."""
    return [name for name in (f"res{index}", f"attn{index}", f"time{index}") if name in modules]


def norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Group norm of up to eight groups that divide the channels."""
    return nn.GroupNorm(math.gcd(channels, 8), channels, affine=affine)


def grid(x: Tensor) -> Tensor:
    """Row and column of each pixel, from -1 to 1: (B, 2, H, W) for x (B, C, H, W)."""
    sides = [(torch.arange(n, device=x.device, dtype=x.dtype) + 0.5) * (2 / n) - 1 for n in x.shape[2:]]
    return torch.stack(torch.meshgrid(*sides, indexing="ij")).expand(x.shape[0], 2, *x.shape[2:])


def _convolution(channels: int, out: int, embedding: int, experts: int) -> nn.Conv2d | CondConv2d:
    if experts == 1:
        return nn.Conv2d(channels, out, 3, padding=1)
    return CondConv2d(channels, out, embedding, experts)


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))) * (1 + scale) + shift)), scale and shift from the embedding.

    With `experts` above 1 the kernels of its convolutions are mixed for each sample, by the embedding.
    """

    def __init__(self, channels: int, out: int, embedding: int, dropout: float, experts: int = 1) -> None:
        super().__init__()
        self.experts = experts
        self.norm1 = norm(channels)
        self.conv1 = _convolution(channels, out, embedding, experts)
        self.modulation = nn.Linear(embedding, 2 * out)
        self.norm2 = norm(out, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _convolution(out, out, embedding, experts)
        for parameter in (self.conv2.weight, self.conv2.bias):
            nn.init.zeros_(parameter)  # type: ignore[arg-type]
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        routed = () if self.experts == 1 else (vector(embedding),)
        scale, shift = self.modulation(vector(embedding))[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv1(F.silu(self.norm1(x)), *routed)
        hidden = F.silu(torch.addcmul(shift, self.norm2(hidden), 1 + scale))
        return self.skip(x) + self.conv2(self.dropout(hidden), *routed)


class Attention(nn.Module):
    """Attention of all pixels to all pixels, and to the words of a caption of width `words`; added to its input."""

    def __init__(self, channels: int, words: int | None = None) -> None:
        super().__init__()
        self.heads = head_count(channels)
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.words = None if words is None else nn.Linear(words, 2 * channels)
        self.core = Attend()
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        words = None if self.words is None else self.words(embedding[:, 1:])
        read = attend(self.qkv(tokens), self.heads, words, self.core)
        return x + self.out(read).transpose(1, 2).reshape(x.shape)


class Down(nn.Module):
    """Halves the resolution by averaging 2x2 pixels; the next residual block changes the width."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)


class Up(nn.Module):
    """Doubles the resolution by repeating pixels."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class UNet(nn.Module):
    """`network(x, noise, label=None, text=None, y=None, **extras)`: (B, C, H, W) to (B, C, H, W).

    See `fewstep.networks.common`.

    Args:
        channels: C. size: the height and width it is meant for (a number when square); other sizes that divide evenly
            work too.
        width: channels at each level, the resolution halves from one to the next. blocks: residual blocks per level,
            down and up alike. attention: the heights, in pixels, of the levels that attend.
        classes: number of classes, or None. patch: folds patch x patch pixels into channels first, so that large
            images cost less. embedding: width of the embedding of noise and class, 4 width[0] when None. dropout:
            within residual blocks.
        vocabulary: how many words captions have, or None; then `text` is (B, L) indices, `captions` the longest L, and
            the levels that attend also attend to the words.
        picture: channels of a picture `y` that goes with x, 0 for none. out: channels of the output, `channels` when
            None.
        places: two more channels hold the row and column of every pixel, from -1 to 1; without them, convolutions
            learn the position only from the borders, and slowly.
        drop: names of skippable blocks that it is built without. experts: kernels of each convolution in residual
            blocks, mixed by the embedding (`fewstep.networks.condconv`), at the levels of the dropped blocks, or at all
            levels where none is dropped; 1 for plain convolutions.
        extras, late: further inputs, and how many blocks read the target (`fewstep.networks.embedding`).

    The last layer starts at zero, and so does every residual branch. Blocks, in order: `down.0.res0`,
    `down.0.attn0`, `down.0.down`, `down.1.res0`, ..., `mid.res0`, `mid.attn`, `mid.res1`, `up.1.res0`, ..., `up.1.up`,
    `up.0.res0`. The number after `down` and `up` is the level, 0 the finest.

    Raises ValueError for sizes that do not divide evenly, for resolutions in `attention` that no level has and for
    blocks to drop that are not skippable.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int | Sequence[int] = 8,
        width: Sequence[int] = (64, 96),
        blocks: int = 1,
        attention: Sequence[int] = (4,),
        classes: int | None = 10,
        patch: int = 1,
        embedding: int | None = None,
        dropout: float = 0.0,
        vocabulary: int | None = None,
        captions: int = 16,
        picture: int = 0,
        out: int | None = None,
        places: bool = False,
        drop: Sequence[str] = (),
        experts: int = 1,
        extras: Mapping[str, int] | None = None,
        late: int = 0,
    ) -> None:
        super().__init__()
        self.channels, self.size = channels, as_pair(size)
        self.vocabulary, self.captions, self.picture = vocabulary, captions, picture
        self.out_channels = channels if out is None else out
        self.places = places
        self.width, self.attention = tuple(width), tuple(attention)
        self.blocks_per_level, self.classes, self.patch, self.dropout = blocks, classes, patch, dropout
        self.drop, self.experts = tuple(drop), experts
        if not self.width or min(self.width) < 1 or min(channels, blocks, patch, experts) < 1:
            raise ValueError(
                "channels, blocks, patch, experts and every width must be at least 1, "
                f"got channels={channels}, blocks={blocks}, patch={patch}, experts={experts}, width={self.width}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        self.factor = patch * 2 ** (len(self.width) - 1)
        self._check_size(self.size)
        heights = [self.size[0] // (patch * 2**level) for level in range(len(self.width))]
        if unknown := sorted(set(self.attention) - set(heights)):
            raise ValueError(f"attention at {unknown}: the levels of this network are {heights} pixels high")

        self.embedding_width = 4 * self.width[0] if embedding is None else embedding
        self.embedding = Embedding(self.embedding_width, classes, extras=extras, late=late)
        self.text = None if vocabulary is None else TextEncoder(vocabulary, captions, self.embedding_width)
        self.first = nn.Conv2d((channels + picture) * patch**2 + 2 * places, self.width[0], 3, padding=1)
        down, up, before = [], [], self.width[0]
        for level, (wide, height) in enumerate(zip(self.width, heights, strict=True)):
            attends, last = height in self.attention, level == len(self.width) - 1
            # Going up, a level receives the width of the level below it, then its own; each block reads one skip.
            below = wide if last else self.width[level + 1]
            count = self._experts_at(level)
            down.append(self._level(blocks, before, 0, wide, attends, None if last else ("down", Down()), count))
            up.append(self._level(blocks, below, wide, wide, attends, ("up", Up()) if level else None, count))
            before = wide
        self.down = nn.ModuleList(down)
        self.mid = nn.ModuleDict({"res0": Residual(before, before, self.embedding_width, dropout, count)})
        if heights[-1] in self.attention:
            self.mid["attn"] = self._attention(before)
        self.mid["res1"] = Residual(before, before, self.embedding_width, dropout, count)
        self.up = nn.ModuleList(up)
        self.last_norm = norm(self.width[0])
        self.last = zeroed(nn.Conv2d(self.width[0], self.out_channels * patch**2, 3, padding=1))
        able = self.skippable
        for name in dict.fromkeys(self.drop):
            if name not in able:
                raise suggest("block", name, able)
            parent, _, child = name.rpartition(".")
            del self.get_submodule(parent)._modules[child]
        self.early = early_blocks(self)

    def _experts_at(self, level: int) -> int:
        """How many kernels the convolutions of a level have."""
        inside = (f"down.{level}.", f"up.{level}.", *(["mid."] if level == len(self.width) - 1 else []))
        return self.experts if not self.drop or any(name.startswith(inside) for name in self.drop) else 1

    def _attention(self, wide: int) -> Attention:
        return Attention(wide, None if self.vocabulary is None else self.embedding_width)

    def _level(
        self,
        blocks: int,
        entering: int,
        skip: int,
        wide: int,
        attends: bool,
        end: tuple[str, nn.Module] | None,
        experts: int,
    ) -> nn.ModuleDict:
        modules: dict[str, nn.Module] = {}
        for index in range(blocks):
            arriving = (wide if index else entering) + skip
            modules[f"res{index}"] = Residual(arriving, wide, self.embedding_width, self.dropout, experts)
            if attends:
                modules[f"attn{index}"] = self._attention(wide)
        return nn.ModuleDict(modules | dict([end] if end else []))

    def _check_size(self, size: tuple[int, int]) -> None:
        if size[0] % self.factor or size[1] % self.factor:
            raise ValueError(
                f"images of {size[0]}x{size[1]} do not divide by {self.factor} "
                f"(patch {self.patch}, {len(self.width)} levels): use a multiple of {self.factor} or fewer levels"
            )

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """The blocks by name, in the order in which they run."""
        return {name: module for name, _, module in self._walk()}

    @property
    def levels(self) -> dict[str, int]:
        """The level of each block by name, 0 the finest; each further level has half the resolution."""
        return {name: level for name, level, _ in self._walk()}

    @property
    def skippable(self) -> dict[str, nn.Module]:
        """The blocks that add to their input and keep its shape: without one of them the network still runs."""
        return {
            name: module
            for name, _, module in self._walk()
            if isinstance(module, Attention) or (isinstance(module, Residual) and isinstance(module.skip, nn.Identity))
        }

    def _walk(self) -> Iterator[tuple[str, int, nn.Module]]:
        for level, modules in enumerate(levels_of(self.down)):
            yield from ((f"down.{level}.{name}", level, module) for name, module in modules.items())
        yield from ((f"mid.{name}", len(self.width) - 1, module) for name, module in self.mid.items())
        for level, modules in reversed(list(enumerate(levels_of(self.up)))):
            yield from ((f"up.{level}.{name}", level, module) for name, module in modules.items())

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON, with the registered name under "network"."""
        return {
            "network": "unet",
            "channels": self.channels,
            "size": plain(self.size),
            "width": list(self.width),
            "blocks": self.blocks_per_level,
            "attention": list(self.attention),
            "classes": self.classes,
            "patch": self.patch,
            "embedding": self.embedding_width,
            "dropout": self.dropout,
            "vocabulary": self.vocabulary,
            "captions": self.captions,
            "picture": self.picture,
            "out": self.out_channels,
            "places": self.places,
            "drop": list(self.drop),
            "experts": self.experts,
            **self.embedding.options,
        }

    def forward(
        self,
        x: Tensor,
        noise: Tensor | None,
        label: Tensor | None = None,
        text: Tensor | None = None,
        y: Tensor | None = None,
        **extras: Tensor | None,
    ) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape (B, {self.channels}, H, W), got {tuple(x.shape)}")
        self._check_size((x.shape[2], x.shape[3]))
        words = self._words(text, x)
        early, late = early_and_late(self.embedding, noise, label, x.shape[0], extras, words)
        told = iter([early] * self.early + [late] * self.embedding.late)  # what each block is told, as they run
        if self.picture:
            if y is None or y.shape != (x.shape[0], self.picture, *x.shape[2:]):
                given = "nothing" if y is None else tuple(y.shape)
                raise ValueError(f"y must have shape {(x.shape[0], self.picture, *x.shape[2:])}, got {given}")
            x = torch.cat([x, y.to(x.dtype)], dim=1)
        elif y is not None:
            raise ValueError("this network was built without a picture (picture=0), but y was given")
        folded = F.pixel_unshuffle(x, self.patch)
        hidden, skips = self.first(torch.cat([folded, grid(folded)], dim=1) if self.places else folded), []
        for modules in levels_of(self.down):
            for index in range(self.blocks_per_level):
                for name in _steps(index, modules):
                    hidden = modules[name](hidden, next(told))
                skips.append(hidden)
            if "down" in modules:
                hidden = modules["down"](hidden, next(told))
        for module in self.mid.values():
            hidden = module(hidden, next(told))
        for modules in reversed(levels_of(self.up)):
            for index in range(self.blocks_per_level):
                hidden = torch.cat([hidden, skips.pop()], dim=1)
                for name in _steps(index, modules):
                    hidden = modules[name](hidden, next(told))
            if "up" in modules:
                hidden = modules["up"](hidden, next(told))
        return F.pixel_shuffle(self.last(F.silu(self.last_norm(hidden))), self.patch)

    def _words(self, text: Tensor | None, x: Tensor) -> Tensor | None:
        """The words of captions (B, L, W), or None in a network without."""
        if self.text is None:
            if text is not None:
                raise ValueError("this network was built without captions (vocabulary=None), but a text was given")
            return None
        if text is None:
            text = torch.zeros(x.shape[0], self.captions, dtype=torch.long, device=x.device)
        return self.text(text)  # type: ignore[no-any-return]
