"""A layer with a low-rank adapter beside its own weights, put in the layer's place by surgery."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.errors import suggest
from fewstep.networks.surgery import InPlaceOf, replaced

Factors = tuple[Tensor, Tensor, float]


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
        if not isinstance(of, nn.Linear | nn.Conv2d):
            raise ValueError(f"an adapter is for a linear layer or a convolution, got {type(of).__name__}")
        if isinstance(of, nn.Conv2d) and of.groups != 1:
            raise ValueError("an adapter of a convolution in groups is not known here")
        shape = tuple(of.weight.shape)
        if (up.shape[0], *down.shape[1:]) != shape or down.shape[0] != up.shape[1]:
            raise ValueError(f"the layer is {shape}, the adapter's sides are {tuple(down.shape)} and {tuple(up.shape)}")
        self.register_buffer("down", down.to(of.weight), persistent=False)
        self.register_buffer("up", up.to(of.weight), persistent=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        of = self.__dict__["of"]
        if isinstance(of, nn.Linear):
            return of(x) + F.linear(F.linear(x, self.down), self.up) * self.scale
        small = F.conv2d(x, self.down, None, of.stride, of.padding, of.dilation)
        return of(x) + F.conv2d(small, self.up) * self.scale


def adapted(module: nn.Module, factors: Mapping[str, Factors]) -> nn.Module:
    """The module with adapters beside the layers at these paths; everything else is shared with it, unchanged.

    Raises:
        ValueError: a path that the module does not have, factors that do not fit.
    """
    parts: dict[str, nn.Module] = {}
    known = dict(module.named_modules())
    for path, (down, up, scale) in factors.items():
        if path not in known:
            raise suggest("layer", path, (name for name in known if name))
        try:
            parts[path] = LowRank(known[path], down, up, scale)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return replaced(module, parts)
