"""Kernels of blurs by name, in float64: weights of odd sides around their middle."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

REACH = 4.0  # standard deviations to which a Gaussian goes
FINE = 9  # points along each axis of a pixel by which a disk's share of it is found


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"the {name} of a blur is a positive number of pixels, got {value!r}")
    return float(value)


def _steps(radius: int) -> Tensor:
    return torch.arange(-radius, radius + 1, dtype=torch.float64)


def gaussian(axes: int, width: float = 1.0) -> Tensor:
    """Along one axis, to 4 standard deviations: the product along all axes is the Gaussian."""
    width = _positive("width", width)
    kernel = torch.exp(-0.5 * (_steps(math.ceil(REACH * width)) / width) ** 2)
    return kernel / kernel.sum()


def box(axes: int, width: float = 3.0) -> Tensor:
    """Along one axis: each pixel by its share of the box."""
    width = _positive("width", width)
    kernel = (width / 2 + 0.5 - _steps(max(0, math.ceil((width - 1) / 2))).abs()).clamp(0, 1)
    return kernel / kernel.sum()


def disk(axes: int, width: float = 3.0) -> Tensor:
    """A ball of this diameter along all axes, as a lens out of focus: each pixel by its share of it."""
    radius = _positive("width", width) / 2
    side = max(0, math.ceil(radius - 0.5))
    fine = (torch.arange(FINE, dtype=torch.float64) + 0.5) / FINE - 0.5
    points = (_steps(side)[:, None] + fine).flatten()
    squared = torch.zeros((), dtype=torch.float64)
    for axis in range(axes):
        squared = squared + (points**2).reshape(-1, *[1] * (axes - 1 - axis))
    kernel = (squared <= radius**2).double()
    for axis in range(axes):
        kernel = kernel.unflatten(axis, (2 * side + 1, FINE)).mean(axis + 1)
    return kernel / kernel.sum()


def motion(axes: int, length: int = 5, angle: float = 0.0) -> Tensor:
    """A line in the last two axes: `length` points a pixel apart, each shared among its four nearest pixels."""
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"the length of a motion is a whole number of pixels of at least 1, got {length!r}")
    if not math.isfinite(angle):
        raise ValueError(f"the angle of a motion is a number of degrees, got {angle!r}")
    if axes == 1 and angle % 180:
        raise ValueError(f"along one axis a motion has no angle, got {angle:g}")
    along = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    turn = math.radians(angle)
    kernel = torch.ones((), dtype=torch.float64)
    shares = []
    for direction in (math.sin(turn), math.cos(turn))[-axes:]:
        places = (along * direction * 2**20).round() / 2**20  # a sine of 180 degrees is nearly, not quite, zero
        side = math.ceil(float(places.abs().max()))
        shares.append((1 - (places[:, None] - _steps(side)).abs()).clamp_min(0))  # (points, pixels)
    kernel = torch.einsum("pi,pj->ij", *shares) if len(shares) == 2 else shares[0].sum(0)
    kernel = kernel.reshape(*[1] * (axes - kernel.ndim), *kernel.shape)
    return kernel / kernel.sum()


KERNELS: dict[str, Callable[..., Tensor]] = {"gaussian": gaussian, "box": box, "disk": disk, "motion": motion}
OPTIONS = {"gaussian": ("width",), "box": ("width",), "disk": ("width",), "motion": ("length", "angle")}


def kernel_of(name: str, axes: int, **options: float) -> Tensor:
    """The kernel of a name for samples of so many axes; `gaussian` and `box` have one axis, and stand for each.

    Raises:
        ValueError: an option of another kernel, or a value that is none.
    """
    for option in options:
        if option not in OPTIONS[name]:
            raise ValueError(f"a {name} blur has {' and '.join(OPTIONS[name])}, not {option}")
    return KERNELS[name](axes, **options)
