"""Bands of frequencies: a Gaussian pyramid whose differences sum to the picture, and the Haar transform of one level.

The pyramid is that of Burt and Adelson, "The Laplacian Pyramid as a Compact Image Code" (1983). Both are for whatever
treats coarse and fine structure apart: scales by band, factors of a picture, a low band that is kept. They take samples
of any size and dtype, and gradients flow through.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole, shown

KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)

Details = tuple[Tensor, Tensor, Tensor]


def bands(x: Tensor, levels: int) -> list[Tensor]:
    """The bands of x, finest first: `levels` tensors of x's size and dtype that sum to x.

    Band k is what the pyramid's level k has beyond level k + 1, each brought back to the full size; the last one is the
    coarsest level itself. Constants are in the last band alone.

    Args:
        x: `(..., H, W)` with at least three axes, or `(B, L)`, which has one axis of frequencies. Half precision is
            computed in float32.
        levels: at least 1, which is x itself. A level of one pixel is the mean of its surroundings and stays so.

    Raises:
        ValueError: levels below 1, a tensor of fewer than two axes or of whole numbers.
    """
    check_whole("levels", levels)
    wide = _wide(x)
    lows = [wide, *(_low(wide, level) for level in range(1, levels))]
    found = [a - b for a, b in zip(lows, lows[1:], strict=False)]
    return [band.to(x.dtype) for band in (*found, lows[-1])]


def low_pass(x: Tensor, level: int) -> Tensor:
    """Level `level` of the pyramid of x (0 is x itself), at x's size: x without what is finer than `2^level` pixels."""
    check_whole("level", level, 0)
    return _low(_wide(x), level).to(x.dtype)


def haar(x: Tensor) -> tuple[Tensor, Details]:
    """One level of the Haar transform over the last two axes of `(..., H, W)`: `(low, details)`.

    Of a pair (a, b) along an axis, the mean `(a + b) / 2` goes to the low part and `(a - b) / 2` to the details, so
    that the low band keeps the range of the picture. A last one without a partner goes to the low part as it is: `low`
    is `(..., ceil(H / 2), ceil(W / 2))`, the details along the width, along the height and along both are
    `(..., ceil(H / 2), floor(W / 2))`, `(..., floor(H / 2), ceil(W / 2))` and `(..., floor(H / 2), floor(W / 2))`.

    Raises:
        ValueError: fewer than two axes, or whole numbers.
    """
    _checked(x)
    low, wide = _split(x, -1)
    (low, high), (wide, both) = _split(low, -2), _split(wide, -2)
    return low, (wide, high, both)


def unhaar(low: Tensor, details: Details) -> Tensor:
    """The inverse of `haar`, exact but for rounding.

    Raises:
        ValueError: details that are not of the sizes that go with `low`.
    """
    wide, high, both = details
    height, width = high.shape[-2], wide.shape[-1]
    sizes = ((low.shape[-2], width), (height, low.shape[-1]), (height, width))
    fitting = low.shape[-2] - height in (0, 1) and low.shape[-1] - width in (0, 1)
    if not fitting or [tuple(part.shape[-2:]) for part in details] != list(sizes):
        found = ", ".join(str(tuple(part.shape)) for part in details)
        raise ValueError(f"details of shapes {found} do not go with a low band of shape {tuple(low.shape)}")
    return _joined(_joined(low, high, -2), _joined(wide, both, -2), -1)


def _split(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    pairs = x.shape[axis] // 2
    both = x.narrow(axis, 0, 2 * pairs)
    first, second = (both.unflatten(axis, (pairs, 2)).select(x.ndim + axis + 1, k) for k in (0, 1))
    alone = x.narrow(axis, 2 * pairs, x.shape[axis] - 2 * pairs)
    return torch.cat([(first + second) / 2, alone], axis), (first - second) / 2


def _joined(low: Tensor, details: Tensor, axis: int) -> Tensor:
    pairs = details.shape[axis]
    mean, alone = low.narrow(axis, 0, pairs), low.narrow(axis, pairs, low.shape[axis] - pairs)
    place = low.ndim + axis
    both = torch.stack([mean + details, mean - details], place + 1).flatten(place, place + 1)
    return torch.cat([both, alone], axis)


def _checked(x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"bands are of floats (..., H, W) or (B, L), got {shown(x)}")


def _wide(x: Tensor) -> Tensor:
    """In at least single precision: half of it has no digits left for differences."""
    _checked(x)
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _low(x: Tensor, level: int) -> Tensor:
    if level == 0:
        return x
    x = x @ _smoothing(x.shape[-1], level, x.device, x.dtype).T
    return x if x.ndim == 2 else _smoothing(x.shape[-2], level, x.device, x.dtype) @ x


@functools.lru_cache(maxsize=64)
def _smoothing(size: int, level: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(size, size): `level` times reduced and as often expanded again, along one axis.

    A matrix, because it is the same map for every picture of a size, has no least size, and is exact in float64; what
    is smaller than the kernel is mirrored as often as it takes.
    """
    with torch.inference_mode(False):  # what is kept must serve gradients later
        whole, sizes = torch.eye(size, dtype=torch.float64), [size]
        for _ in range(level):
            whole = _reducing(sizes[-1]) @ whole
            sizes.append(len(whole))
        for fine in reversed(sizes[:-1]):
            whole = _expanding(fine) @ whole
        return whole.to(device, dtype)


def _reducing(size: int) -> Tensor:
    """(ceil(size / 2), size): smoothed by the kernel, mirrored at the ends, every second one kept."""
    matrix, period = torch.zeros((size + 1) // 2, size, dtype=torch.float64), max(1, 2 * (size - 1))
    for row in range(len(matrix)):
        for k, weight in enumerate(KERNEL):
            place = (2 * row + k - 2) % period
            matrix[row, min(place, period - place) if size > 1 else 0] += weight
    return matrix


def _expanding(size: int) -> Tensor:
    """(size, ceil(size / 2)): interpolated by the same kernel, whose weights sum to 1 at the ends too."""
    matrix = torch.zeros(size, (size + 1) // 2, dtype=torch.float64)
    for column in range(matrix.shape[1]):
        for k, weight in enumerate(KERNEL):
            if 0 <= (row := 2 * column + k - 2) < size:
                matrix[row, column] = weight
    return matrix / matrix.sum(1, keepdim=True)
