"""A UNet of clips: that of pictures on every frame, and between its blocks layers that look along time.

The layers start at zero, so a clip is at first so many independent pictures, bit for bit, and a network of pictures
becomes one of clips without forgetting any (Blattmann et al., "Align your Latents", 2023; Guo et al., "AnimateDiff",
2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.methods import Method
from fewstep.networks.common import Attend, attend, head_count, vector, zeroed
from fewstep.networks.embedding import early_blocks
from fewstep.networks.unet import UNet, levels_of, norm

METHODS = (
    Method(
        "temporal-unet",
        paper="Align your Latents: High-Resolution Video Synthesis with Latent Diffusion Models (Blattmann et al.,"
        " 2023)",
        arxiv="2304.08818",
        claim="with its layers of time at zero a clip is its frames, bit for bit; trained, they tell motion",
        use="TemporalUNet",
        facts={
            "shape": (4, 3, 8, 12),
            "small": {
                "channels": 3,
                "size": (8, 12),
                "width": (16, 24),
                "attention": (4,),
                "classes": 5,
                "embedding": 40,
                "vocabulary": 6,
                "captions": 4,
                "frames": 4,
            },
        },
    ),
)

IMAGE = ("channels", "size", "width", "blocks", "attention", "classes", "patch", "embedding", "dropout", "vocabulary",
         "captions", "picture", "out", "places", "drop", "experts", "extras", "late")  # fmt: skip


def moments(frames: int, width: int) -> Tensor:
    """Sines and cosines of each frame's number, (frames, width)."""
    rates = 100.0 ** -torch.linspace(0, 1, width // 2)
    phase = torch.arange(frames)[:, None] * rates
    return F.pad(torch.cat([phase.sin(), phase.cos()], dim=1), (0, width % 2))


class Along(nn.Module):
    """Attention of each pixel to the same pixel in all frames, (B, T, C, N) to (B, T, C, N)."""

    place: Tensor

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.heads = head_count(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.core = Attend()
        self.out = zeroed(nn.Linear(channels, channels))
        self.register_buffer("place", moments(frames, channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.permute(0, 3, 1, 2) + self.place.to(x.dtype)  # (B, N, T, C)
        read: Tensor = self.out(attend(self.qkv(tokens.flatten(0, 1)), self.heads, None, self.core))
        return read.unflatten(0, tokens.shape[:2]).permute(0, 2, 3, 1)


class Time(nn.Module):
    """x + conv(silu(conv(norm(x)) * (1 + scale) + shift)), then x + attention(norm(x)), both along time.

    x is (B T, C, H, W), the frames of a clip one after another; scale and shift come from the embedding. Beyond the
    ends of a clip the convolutions, of three frames, see zeros. The norm is over each frame, the last convolution and
    the attention's output start at zero.
    """

    def __init__(self, channels: int, embedding: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.norm1, self.norm2 = norm(channels), norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.modulation = nn.Linear(embedding, 2 * channels)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)))
        self.attn = Along(channels, frames)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        # As pictures of T rows and one column for each pixel.
        scale, shift = self.modulation(vector(embedding)[:: self.frames])[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv1(self._clips(self.norm1(x)).transpose(1, 2))
        hidden = self.conv2(F.silu(torch.addcmul(shift, hidden, 1 + scale)))
        x = x + hidden.transpose(1, 2).reshape(x.shape)
        return x + self.attn(self._clips(self.norm2(x))).reshape(x.shape)

    def _clips(self, x: Tensor) -> Tensor:
        """(B T, C, H, W) to (B, T, C, H W)."""
        return x.flatten(2).unflatten(0, (-1, self.frames))


class TemporalUNet(UNet):
    """`network(x, noise, label=None, text=None, y=None, **extras)`: (B, T, C, H, W) to (B, T, C, H, W).

    Noise level, label, caption and further inputs are those of the clip and hold for all its frames; a picture `y` may
    be one for the clip, (B, P, H, W), or one for each frame, (B, T, P, H, W). Inside, the frames of all clips are one
    batch: blocks are called with (B T, C, H, W), those of pictures without knowing of time.

    Args:
        frames: T. frozen: whether the weights of pictures, all but those of the layers of time, ask for no gradient.
        channels, ..., late: as those of `fewstep.networks.unet.UNet`.

    Blocks are named as those of `UNet`; the layers of time are `down.0.time0` after each block of residual and
    attention, and `mid.time`. They can be left out, like other blocks that add to their input.

    Raises ValueError as `UNet`, for fewer than two frames, and for clips of another length.
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
        frames: int = 8,
        frozen: bool = False,
        extras: Mapping[str, int] | None = None,
        late: int = 0,
    ) -> None:
        if frames < 2:
            raise ValueError(f"a clip has at least two frames, got frames={frames}: pictures have a network 'unet'")
        super().__init__(
            channels, size, width, blocks, attention, classes, patch, embedding, dropout, vocabulary, captions, picture,
            out, places, drop, experts, extras, late,
        )  # fmt: skip
        self.frames = frames
        for side in (self.down, self.up):
            for level, modules in enumerate(levels_of(side)):
                own = dict(modules.items())
                for index in range(blocks):
                    last = f"attn{index}" if f"attn{index}" in own else f"res{index}"
                    own = _after(own, last, f"time{index}", self._time(self.width[level]))
                side[level] = nn.ModuleDict(own)
        self.mid["time"] = self._time(self.width[-1])
        self.early = early_blocks(self)
        self.freeze(frozen)

    def _time(self, channels: int) -> Time:
        return Time(channels, self.embedding_width, self.frames)

    @classmethod
    def around(cls, image: UNet, frames: int = 8, frozen: bool = True) -> TemporalUNet:
        """A network of clips with the weights of one of pictures, which stays as it is, and its dtype and device."""
        config = {name: value for name, value in image.config().items() if name != "network"}
        made = cls(**config, frames=frames, frozen=frozen)
        weights = image.state_dict()
        made.load_state_dict(made.state_dict() | weights)
        like = next(image.parameters())
        return made.to(like.device, like.dtype).train(image.training)

    def still(self) -> UNet:
        """The network of pictures inside, sharing its weights: a batch of frames without their time."""
        config = {name: value for name, value in self.config().items() if name in IMAGE}
        with torch.random.fork_rng(devices=[]):  # its own first weights are thrown away
            made = UNet(**config).requires_grad_(not self.frozen)  # which a state that is assigned takes over
        shared = self.state_dict(keep_vars=True)
        made.load_state_dict({name: shared[name] for name in made.state_dict()}, assign=True)
        like = next(self.parameters())
        return made.to(like.device, like.dtype).train(self.training)

    @property
    def times(self) -> dict[str, Time]:
        """The layers of time, by name."""
        return {name: module for name, module in self.blocks.items() if isinstance(module, Time)}

    @property
    def skippable(self) -> dict[str, nn.Module]:
        """The blocks that add to their input and keep its shape: without one of them the network still runs."""
        able = super().skippable
        return {name: module for name, module in self.blocks.items() if name in able or isinstance(module, Time)}

    def freeze(self, frozen: bool = True) -> None:
        """Whether the weights of pictures ask for no gradient; those of time always do."""
        self.frozen = frozen
        own = {id(parameter) for module in self.times.values() for parameter in module.parameters()}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in own or not frozen)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON, with the registered name under "network"."""
        return super().config() | {"network": "temporal-unet", "frames": self.frames, "frozen": self.frozen}

    def forward(
        self,
        x: Tensor,
        noise: Tensor | None,
        label: Tensor | None = None,
        text: Tensor | None = None,
        y: Tensor | None = None,
        **extras: Tensor | None,
    ) -> Tensor:
        if x.ndim != 5 or x.shape[1:3] != (self.frames, self.channels):
            raise ValueError(f"x must have shape (B, {self.frames}, {self.channels}, H, W), got {tuple(x.shape)}")
        if label is not None and self.classes is not None:
            self.embedding.check_label(label, len(x))
        if y is not None and y.ndim == 5:
            y = y.flatten(0, 1)
        elif y is not None:
            y = self._each(y)
        further = {name: self._each(value) for name, value in extras.items()}
        frames = super().forward(x.flatten(0, 1), self._each(noise), self._each(label), self._each(text), y, **further)
        return frames.unflatten(0, x.shape[:2])

    def _each(self, value: Tensor | None) -> Tensor | None:
        """What holds for a clip, for each of its frames."""
        return value if value is None or value.ndim == 0 else value.repeat_interleave(self.frames, 0)


def _after(modules: Mapping[str, nn.Module], last: str, name: str, new: nn.Module) -> dict[str, nn.Module]:
    """The modules in their order, with a new one behind the one of the name `last`; behind all where there is none."""
    found: dict[str, nn.Module] = {}
    for key, module in modules.items():
        found[key] = module
        if key == last:
            found[name] = new
    return found if name in found else found | {name: new}
