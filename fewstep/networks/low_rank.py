"""Low-rank adapters as two sides and a scale: beside a layer's weights, put there by surgery, or added to them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.errors import suggest
from fewstep.networks.surgery import InPlaceOf, replaced

Factors = tuple[Tensor, Tensor, float]  # (rank, in, ...), (out, rank, ...) and the scale


class LowRank(InPlaceOf):
    """`of(x) + scale * up(down(x))` for a linear layer or a convolution `of`, whose weights it shares.

    Args:
        down: (rank, in) or (rank, in, kh, kw), which moves as the layer does. up: (out, rank) or (out, rank, 1, 1).

    Raises:
        ValueError: factors of another shape than the layer's.
    """

    down: Tensor
    up: Tensor

    def __init__(self, of: nn.Module, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__(of)
        weight = _weight(of, down, up)
        self.register_buffer("down", down.to(weight), persistent=False)
        self.register_buffer("up", up.to(weight), persistent=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        of = self.__dict__["of"]
        if isinstance(of, nn.Linear):
            return of(x) + F.linear(F.linear(x, self.down), self.up) * self.scale
        small = F.conv2d(x, self.down, None, of.stride, of.padding, of.dilation)
        return of(x) + F.conv2d(small, self.up) * self.scale


def _weight(of: nn.Module, down: Tensor, up: Tensor) -> Tensor:
    """A layer's weight; `ValueError` unless these are the sides of an adapter for it."""
    if not isinstance(of, nn.Linear | nn.Conv2d):
        raise ValueError(f"an adapter is for a linear layer or a convolution, got {type(of).__name__}")
    if isinstance(of, nn.Conv2d) and of.groups != 1:
        raise ValueError("an adapter of a convolution in groups is not known here")
    shape = tuple(of.weight.shape)
    if (up.shape[0], *down.shape[1:]) != shape or down.shape[0] != up.shape[1]:
        raise ValueError(f"the layer is {shape}, the adapter's sides are {tuple(down.shape)} and {tuple(up.shape)}")
    return of.weight


def adapted(module: nn.Module, factors: Mapping[str, Factors]) -> nn.Module:
    """The module with adapters beside the layers at these paths; everything else is shared with it, unchanged.

    Raises:
        ValueError: a path that the module does not have, factors that do not fit.
    """
    parts: dict[str, nn.Module] = {}
    for path, (down, up, scale) in factors.items():
        of = _layer(module, path)
        try:
            parts[path] = LowRank(of, down, up, scale)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return replaced(module, parts)


def _layer(module: nn.Module, path: str) -> nn.Module:
    known = dict(module.named_modules())
    if path not in known:
        raise suggest("layer", path, (name for name in known if name))
    return known[path]


def summed(several: Sequence[Factors]) -> Factors:
    """Adapters of one layer as one: their sides next to each other, of the sum of their ranks."""
    if len(several) == 1:
        return several[0]
    downs, ups, scales = zip(*several, strict=True)
    return torch.cat(downs), torch.cat([up * scale for up, scale in zip(ups, scales, strict=True)], dim=1), 1.0


@torch.no_grad()
def merged(module: nn.Module, factors: Mapping[str, Sequence[Factors]]) -> nn.Module:
    """A copy of the module whose weights have several adapters added, `W + sum scale B A`, by the layers' paths.

    The sum is taken in float64 and rounded once, so that the order of the adapters does not show.

    Raises:
        ValueError: as `adapted`.
    """
    made = copy.deepcopy(module)
    for path, several in factors.items():
        of = _layer(made, path)
        try:
            weights = [_weight(of, down, up) for down, up, _ in several]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        for weight in weights[:1]:
            own = torch.stack([_delta(down.to(weight.device), up.to(weight.device), s) for down, up, s in several])
            weight.copy_(weight.double() + own.sum(0))
    return made


def _delta(down: Tensor, up: Tensor, scale: float) -> Tensor:
    """`scale B A` in the weight's shape, float64."""
    return scale * (up.double().flatten(1) @ down.double().flatten(1)).view(len(up), *down.shape[1:])


@torch.no_grad()
def put_in(module: nn.Module) -> nn.Module:
    """The module or, where layers of it have adapters beside them, a copy with those added to the weights."""
    if not any(isinstance(layer, LowRank) for layer in module.modules()):
        return module
    made = copy.deepcopy(module)
    for path, layer in list(made.named_modules()):
        if isinstance(layer, LowRank):
            of, (parent, _, name) = layer.__dict__["of"], path.rpartition(".")
            of.weight.copy_(of.weight.double() + _delta(layer.down, layer.up, layer.scale))
            setattr(made.get_submodule(parent), name, of)
    return made


class LowRankRows(InPlaceOf):
    """`of(x) + up(down(x))` with an adapter of its own for each row of a batch, such as each measurement has.

    Args:
        down: (B, rank, in) or (B, rank, in, kh, kw). up: (B, out, rank), both with their gradients; they may be
            exchanged between two calls.

    Raises:
        ValueError: on a call, where the layer's input has another number of rows.
    """

    def __init__(self, of: nn.Module, down: Tensor, up: Tensor) -> None:
        super().__init__(of)
        self.set(down, up)

    def set(self, down: Tensor, up: Tensor) -> None:
        self.__dict__["sides"] = (down, up)

    def forward(self, x: Tensor) -> Tensor:
        of, (down, up) = self.__dict__["of"], self.__dict__["sides"]
        down, up = down.to(x.dtype), up.to(x.dtype)
        if len(x) != len(down):
            raise ValueError(f"a layer sees {len(x)} rows, and {len(down)} have an adapter: it mixes rows")
        if isinstance(of, nn.Linear):
            rows = x.reshape(len(x), -1, x.shape[-1])
            return of(x) + (rows @ down.mT @ up.mT).reshape(*x.shape[:-1], -1)
        # All rows in one convolution: a group for each.
        rows = x.reshape(1, -1, *x.shape[2:])
        small = F.conv2d(rows, down.flatten(0, 1), None, of.stride, of.padding, of.dilation, groups=len(x))
        small = small.reshape(len(x), -1, *small.shape[2:])
        return of(x) + torch.einsum("bor,brhw->bohw", up, small)
