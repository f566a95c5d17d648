"""What a network is told beside its input, as one vector: noise level, class, and the further inputs of students.

The further inputs, `extras`, are named with their widths, `{"target": 1, "latent": 16}`, and given by name as
`network(x, noise, label, target=..., latent=...)`:

- `target`: the noise level that a flow map goes to, in the units of `noise`. Left out, it is `noise` itself.
- `guidance`: the scale of the guidance inside. Left out, it is 1.
- `share`: a number in 0 to 1 that names a point of a stretch of time. Left out, it is 1.
- `latent`: a vector. Left out, it is zero.

The first three are finite numbers, (B,) or one for the batch; `latent` is (B, D). Each goes through a perceptron of its
own, whose last layer is zero at first: with new inputs, `extended`, a network answers what it answered before.

With `late=n` the target has no perceptron. In its place the last n of `network.blocks`, and what follows them, get the
embedding in which the target's noise level stands for that of the input, made with the same weights: the decoupled
times of Lee et al., "Decoupled MeanFlow" (2025, arXiv:2510.24474), whose early blocks read where x is and late ones
where it goes. At `target = noise` that is the network without a target.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.errors import suggest
from fewstep.networks.common import zeroed
from fewstep.networks.surgery import linked

# Angular frequencies of the Fourier features, in radians per unit of `noise`. The lowest is monotone over a range of
# six; the highest resolves a hundredth. Much higher ones would make the output rough in t, which consistency and
# flow-map training differentiate.
LOWEST, HIGHEST = 0.5, 32.0
EXTRAS = ("target", "guidance", "share", "latent")

_Network = TypeVar("_Network", bound=nn.Module)


class Embedding(nn.Module):
    """Noise level and class as one vector: MLP(Fourier features of `noise`) + a row of a table, (B, width).

    The table has one row more than there are classes; the last one means "no label", as classifier-free
    guidance needs (Ho and Salimans, 2022, arXiv:2207.12598). After `hide_noise` there is also a learned vector
    `unknown` in place of the perceptron's, for a noise level that is None, or NaN in some rows; an unknown target adds
    nothing. To these come the perceptrons of the `extras`, but that of a target which late blocks read.

    Raises ValueError for what is no extra, has another width than it may have, or is missing for `late`; when called,
    for inputs of other shapes and those that it was not built for.
    """

    frequencies: Tensor
    unknown: nn.Parameter | None

    def __init__(
        self,
        width: int,
        classes: int | None,
        features: int = 64,
        extras: Mapping[str, int] | None = None,
        late: int = 0,
    ) -> None:
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
        self.extras: dict[str, int] = {}
        self.late = 0
        self.extra = nn.ModuleDict()
        self.extend(extras or {}, late)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments `extras` and `late` as JSON, where they are set: configurations of all others stay as they
        were."""
        return ({"extras": dict(self.extras)} if self.extras else {}) | ({"late": self.late} if self.late else {})

    def extend(self, extras: Mapping[str, int], late: int = 0) -> None:
        """Adds inputs to those that it has, with perceptrons that add nothing yet."""
        for name, width in extras.items():
            if name not in EXTRAS:
                raise suggest("extra input", name, EXTRAS)
            if width < 1 or (width > 1 and name != "latent"):
                raise ValueError(f"the extra input {name!r} must have the width 1 (a latent 1 or more), got {width}")
            if self.extras.get(name, width) != width:
                raise ValueError(f"{name!r} has the width {self.extras[name]} in this network already, got {width}")
        wanted = self.extras | dict(extras)
        if late < 0 or (late and "target" not in wanted):
            raise ValueError(f"late must be at least 0, and needs the extra input 'target', got late={late}")
        if late and late != self.late and "target" in self.extras:
            raise ValueError(f"this network has a target already (late={self.late}), got late={late}")
        self.late = late or self.late
        # In one order, however they came: that of parameters is that of an optimiser's moments.
        self.extras = {name: wanted[name] for name in EXTRAS if name in wanted}
        self.extra = nn.ModuleDict(
            {
                name: self.extra[name] if name in self.extra else self._perceptron(name)
                for name in self.extras
                if name != "target" or not self.late
            }
        )

    def _perceptron(self, name: str) -> nn.Module:
        width, like = self.second.out_features, self.first.weight
        entering = self.extras[name] if name == "latent" else self.first.in_features
        made = nn.Sequential(nn.Linear(entering, width), nn.SiLU(), zeroed(nn.Linear(width, width)))
        return made.to(like.device, like.dtype)

    def hide_noise(self) -> None:
        """Adds the vector for an unknown noise level, zero at first; it has none before, so old weights still fit."""
        if self.unknown is None:
            self.unknown = nn.Parameter(torch.zeros_like(self.second.bias))

    def _number(
        self,
        name: str,
        value: Tensor,
        batch: int,
        perceptron: Callable[[Tensor], Tensor],
        unknown: Tensor | None,
    ) -> Tensor:
        """`perceptron` of the Fourier features of a number for each sample; `unknown` (W,) where that is NaN."""
        if value.shape not in ((), (batch,)):
            raise ValueError(f"{name} must be one number or have shape ({batch},), got {tuple(value.shape)}")
        dtype = self.first.weight.dtype
        # In float32 or more, whatever the network computes in: bfloat16 would round the noise level.
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        level = value.to(exact).expand(batch)[:, None]
        hidden = None if unknown is None else level.isnan()
        if hidden is not None:
            level = level.masked_fill(hidden, 0.0)  # the gradient of a NaN that is chosen away is still NaN
        phase = level * self.frequencies.to(exact)
        out = perceptron(torch.cat([phase.cos(), phase.sin()], dim=1).to(dtype))
        return out if hidden is None or unknown is None else torch.where(hidden, unknown, out)

    def _noise(self, noise: Tensor | None, batch: int) -> Tensor:
        if noise is None:
            if self.unknown is None:
                raise ValueError("this network was not trained for an unknown noise level (noise_dropout), but noise is"
                                 " None")  # fmt: skip
            return self.unknown.expand(batch, -1)
        return self._number("noise", noise, batch, lambda x: self.second(F.silu(self.first(x))), self.unknown)

    def _extra(self, name: str, value: Tensor | None, noise: Tensor | None, out: Tensor) -> Tensor:
        """What an extra input adds to `out` (B, W)."""
        batch, perceptron = len(out), self.extra[name]
        if name == "latent":
            shape = (batch, self.extras[name])
            value = out.new_zeros(shape) if value is None else value
            if value.shape != shape:
                raise ValueError(f"latent must have shape {shape}, got {tuple(value.shape)}")
            return perceptron(value.to(self.first.weight.dtype))  # type: ignore[no-any-return]
        unknown = None
        if name == "target":
            value = noise if value is None else value
            if value is None:
                return torch.zeros_like(out)
            unknown = None if self.unknown is None else torch.zeros_like(self.unknown)
        elif value is None:
            value = torch.ones((), device=out.device)
        return self._number(name, value, batch, perceptron, unknown)

    def forward(self, noise: Tensor | None, label: Tensor | None, batch: int, **extras: Tensor | None) -> Tensor:
        for name, value in extras.items():
            if value is not None and name not in self.extras:
                raise ValueError(f"this network was built without the extra input {name!r}, but it was given"
                                 f" (it has {', '.join(self.extras) or 'none'})")  # fmt: skip
        out = self._noise(noise, batch)
        for name in self.extra:
            out = out + self._extra(name, extras.get(name), noise, out)
        if self.classes is None:
            if label is not None:
                raise ValueError("this network was built without classes (classes=None), but a label was given")
            return out
        if label is None:
            label = torch.full((batch,), self.classes, device=out.device)
        self.check_label(label, batch)
        return out + self.label(label)

    def check_label(self, label: Tensor, batch: int) -> None:
        """ValueError unless labels are one whole number for each sample."""
        if label.shape != (batch,) or label.is_floating_point() or label.dtype == torch.bool:
            raise ValueError(
                f"label must be {batch} integers in 0 to {self.classes} ({self.classes} means no label), "
                f"got shape {tuple(label.shape)} of {label.dtype}"
            )


def early_blocks(network: nn.Module) -> int:
    """How many of a network's blocks run before the late ones. Raises ValueError where there are fewer than those."""
    count, late = len(network.blocks), int(network.embedding.late)  # type: ignore[arg-type, union-attr]
    if late > count:
        raise ValueError(f"late must be at most {count}, the number of blocks, got {late}")
    return count - late


def early_and_late(
    embedding: nn.Module,
    noise: Tensor | None,
    label: Tensor | None,
    batch: int,
    extras: Mapping[str, Tensor | None],
    words: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """silu(embedding) for the early blocks and for the late ones, (B, W), or one tensor twice where they are the same.

    With the words of a caption (B, L, W) the embedding also gets their mean, and they come after it, (B, 1 + L, W).
    """

    def told(level: Tensor | None) -> Tensor:
        found: Tensor = embedding(level, label, batch, **extras)
        if words is None:
            return F.silu(found)
        return torch.cat([F.silu(found + words.mean(1))[:, None], words], dim=1)

    early = told(noise)
    if not embedding.late or (target := extras.get("target")) is None:
        return early, early
    return early, told(target)


def extended(network: _Network, late: int = 0, copied: bool = True, **extras: int) -> _Network:
    """A network with further inputs and the weights of this one, which stays as it is: `extended(network, target=1)`.

    Its class, dtype, device, mode and blocks are those of `network`, its `config()` says what was added, and it answers
    bit for bit as before, whether the new inputs are given or not; only that late blocks read another target's level.
    New weights draw from torch's global generator. Inputs that `network` has already stay, with their weights.
    copied: whether the weights are; without, they are those of `network` itself.

    Raises:
        ValueError: a network without our `Embedding`, as those of diffusers, what is no extra input, another width than
            it may have or has already, `late` without a target, for a network that has one, or above the number of
            blocks.
    """
    if not isinstance(getattr(network, "embedding", None), Embedding) or not hasattr(network, "early"):
        raise ValueError(
            f"{type(network).__name__} has no embedding of fewstep.networks that could take further inputs"
            f" ({', '.join(EXTRAS)})"
        )
    made = copy.deepcopy(network) if copied else linked(network)
    made.embedding.extend(extras, late)  # type: ignore[operator, union-attr]
    made.early = early_blocks(made)  # type: ignore[assignment]
    return made
