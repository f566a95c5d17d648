"""Bands of frequencies: a Gaussian pyramid whose differences sum to the picture.

The pyramid is that of Burt and Adelson, "The Laplacian Pyramid as a Compact Image Code" (1983), for whatever treats
coarse and fine structure apart: scales by band, factors of a picture. It takes samples of any size and dtype, and
gradients flow through.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole, shown

KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


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
