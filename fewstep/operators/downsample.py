"""Fewer pixels: means of blocks, a bicubic reduction, or one element of each block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.operators.operator import LinearOperator, size_axes
from fewstep.operators.spectrum import on_axis

METHODS = (
    Method(
        "downsample",
        paper="Cubic Convolution Interpolation for Digital Image Processing (Keys, 1981), for `bicubic`",
        claim="a picture with fewer pixels along every axis: means of blocks, antialiased bicubic, or every n-th",
        use="Downsample",
    ),
)

FILTERS = ("average", "bicubic", "stride")
SHARPNESS = -0.5  # Keys' a: the one that reproduces parabolas


class Downsample(LinearOperator):
    """`y` `(C, *size / factor)` of samples `(C, *size)`, or `(n / factor,)` of vectors.

    Args:
        factor: a whole number that divides every axis of the size.
        filter: "average" of blocks, "bicubic" (Keys' cubic as wide as the reduction needs, its weights summing to 1 at
            the borders too, as Pillow and `interpolate(..., antialias=True)` have it), or "stride", the first element
            of each block.
    """

    def __init__(self, factor: int, filter: str = "average"):
        super().__init__()
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
            raise ValueError(f"samples are made smaller by a whole factor of at least 1, got {factor!r}")
        if filter not in FILTERS:
            raise suggest("filter", filter, FILTERS)
        self.factor, self.filter = factor, filter

    def config(self) -> dict[str, Any]:
        return {"factor": self.factor, "filter": self.filter}

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axes = size_axes(shape)
        if any(shape[axis] % self.factor for axis in axes):
            raise ValueError(f"{self} needs sizes that {self.factor} divides, got samples of shape {shape}")
        if self.filter == "bicubic":
            for axis in axes:
                self.register_buffer(f"matrix_{axis}", bicubic(shape[axis], self.factor), persistent=False)
        return tuple(n // self.factor if axis in axes else n for axis, n in enumerate(shape))

    def act(self, x: Tensor) -> Tensor:
        for axis in size_axes(x.shape[1:]):
            if self.filter == "bicubic":
                x = on_axis(x, getattr(self, f"matrix_{axis}"), axis)
            else:
                blocks = x.unflatten(axis + 1, (-1, self.factor))
                x = blocks.mean(axis + 2) if self.filter == "average" else blocks.select(axis + 2, 0)
        return x

    def transpose(self, y: Tensor) -> Tensor:
        for axis in size_axes(y.shape[1:]):
            if self.filter == "bicubic":
                y = on_axis(y, getattr(self, f"matrix_{axis}").mT, axis)
            elif self.filter == "average":
                y = (y / self.factor).repeat_interleave(self.factor, axis + 1)
            else:
                rest = y.new_zeros(*y.shape[: axis + 2], self.factor - 1, *y.shape[axis + 2 :])
                y = torch.cat((y.unsqueeze(axis + 2), rest), axis + 2).flatten(axis + 1, axis + 2)
        return y

    def along(self) -> tuple[Tensor | None, ...]:
        assert self.shape is not None
        axes = size_axes(self.shape)
        return tuple(self._matrix(axis, n) if axis in axes else None for axis, n in enumerate(self.shape))

    def _matrix(self, axis: int, n: int) -> Tensor:
        if self.filter == "bicubic":
            return getattr(self, f"matrix_{axis}")  # type: ignore[no-any-return]
        weights = torch.zeros(self.factor, dtype=torch.float64)
        weights[:] = 1 / self.factor if self.filter == "average" else 0
        if self.filter == "stride":
            weights[0] = 1
        return torch.kron(torch.eye(n // self.factor, dtype=torch.float64), weights[None])


def bicubic(n: int, factor: int) -> Tensor:
    """The matrix `(n / factor, n)` of the antialiased bicubic reduction, in float64."""
    middles = (torch.arange(n // factor, dtype=torch.float64) + 0.5) * factor
    distance = (torch.arange(n, dtype=torch.float64) + 0.5 - middles[:, None]).abs() / factor
    near = ((SHARPNESS + 2) * distance - (SHARPNESS + 3)) * distance**2 + 1
    far = SHARPNESS * (((distance - 5) * distance + 8) * distance - 4)
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)
