"""The Haar wavelet transform of pictures of any size, and its inverse, exact."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# One level of details: high in width, high in height, high in both.
Details = tuple[Tensor, Tensor, Tensor]


def haar(x: Tensor) -> tuple[Tensor, Details]:
    """One level of the transform: of x `(..., H, W)` the low band and the details, `(..., ceil(H/2), ceil(W/2))` each.

    Along each axis a pair (a, b) becomes `(a + b) / sqrt(2)` and `(a - b) / sqrt(2)`, so the norm stays. The last row
    of an odd height, and column of an odd width, is paired with itself: its details along that axis are 0.
    """
    even = F.pad(x.reshape(1, -1, *x.shape[-2:]), (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), mode="replicate")
    even = even.view(*x.shape[:-2], *even.shape[-2:])
    low, wide = _split(even, -1)
    (low, tall), (wide, both) = _split(low, -2), _split(wide, -2)
    return low, (wide, tall, both)


def inverse_haar(low: Tensor, details: Details, size: tuple[int, int]) -> Tensor:
    """The picture `(..., *size)` that `haar` takes to these bands."""
    wide, tall, both = details
    whole = _joined(_joined(low, tall, -2), _joined(wide, both, -2), -1)
    return whole[..., : size[0], : size[1]]


def low_band(x: Tensor, levels: int = 1) -> Tensor:
    """The low band of x `(..., H, W)` after so many levels."""
    for _ in range(levels):
        x = haar(x)[0]
    return x


def with_low_band(x: Tensor, low: Tensor, levels: int = 1) -> Tensor:
    """x with another low band: its details stay, and `low_band(with_low_band(x, low, n), n)` is `low`."""
    if levels == 0:
        return low
    own, details = haar(x)
    return inverse_haar(with_low_band(own, low, levels - 1), details, (x.shape[-2], x.shape[-1]))


def _split(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    a, b = x.unflatten(axis, (-1, 2)).unbind(axis)
    return (a + b) / math.sqrt(2), (a - b) / math.sqrt(2)


def _joined(low: Tensor, high: Tensor, axis: int) -> Tensor:
    return torch.stack(((low + high) / math.sqrt(2), (low - high) / math.sqrt(2)), axis).flatten(axis - 1, axis)
