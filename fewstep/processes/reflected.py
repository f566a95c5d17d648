"""Reflected Brownian motion on the cube [0, 1]^d, and its heat kernel.

A path that is reflected at the walls is a free path folded: `fold` maps the line onto [0, 1] by mirrors at all whole
numbers. So the process runs free, in unfolded coordinates, with a score that has the mirrors' symmetry (odd about every
wall, of period 2), and its samples are folded at the end: every solver of a Gaussian process serves it, and none of
them can leave the cube.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.processes.ve import VE

METHODS = (
    Method(
        "reflected",
        paper="Statistical guarantees for denoising reflected diffusion models (Holk, Strauch and Trottner, 2024)",
        arxiv="2411.01563",
        claim="Brownian motion between mirrors: free in unfolded coordinates, uniform in the end",
        use="Reflected",
    ),
)

# Below this standard deviation five mirror images leave exp(-50) of the kernel, above it five cosines exp(-44).
_SWITCH = 0.5
_IMAGES = range(-2, 3)
_COSINES = range(1, 6)


def fold(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` folded into [0, 1] by mirrors at all whole numbers, and the slope of the fold there, 1 or -1.

    Both have x's shape. 1.25 becomes 0.75, with slope -1; so does -0.75, with slope -1; 2.25 becomes 0.25, slope 1.
    """
    period = torch.remainder(x, 2.0)
    mirrored = period > 1
    # remainder rounds up to 2 itself just below a multiple of 2
    return torch.where(mirrored, 2 - period, period).clamp(0.0, 1.0), 1.0 - 2.0 * mirrored.to(x.dtype)


def _by_images(u: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """`wrapped` as a sum of normals, one at every multiple of 2 (method of images)."""
    log_density, mean = torch.full_like(u, -math.inf), torch.zeros_like(u)
    for m in _IMAGES:
        term = -0.5 * ((u + 2 * m) / std) ** 2
        both = torch.logaddexp(log_density, term)
        mean = mean * (log_density - both).exp() + (u + 2 * m) * (term - both).exp()
        log_density = both
    return log_density - std.log() - 0.5 * math.log(2 * math.pi), -mean / std


def _by_cosines(u: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """`wrapped` as its Fourier series."""
    density, slope = torch.full_like(u, 0.5), torch.zeros_like(u)
    for n in _COSINES:
        decay = (-0.5 * (n * math.pi * std) ** 2).exp()
        density = density + decay * (n * math.pi * u).cos()
        slope = slope - n * math.pi * decay * (n * math.pi * u).sin()
    return density.log(), std * slope / density


def wrapped(u: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Log density of a normal on the circle of length 2, and std times its derivative; u and std broadcast.

    `sum_m N(u + 2 m; 0, std^2) = 1/2 + sum_n exp(-n^2 pi^2 std^2 / 2) cos(n pi u)`: the left side is summed for small
    std, the right one for large; each is exact to rounding where it is used. std is positive.
    """
    u = torch.remainder(u + 1, 2.0) - 1
    few, many = _by_images(u, std.clamp_max(_SWITCH)), _by_cosines(u, std.clamp_min(_SWITCH))
    small = std < _SWITCH
    return torch.where(small, few[0], many[0]), torch.where(small, few[1], many[1])


def kernel(y: Tensor, x: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Log density of reflected Brownian motion at y when it started at x, and std times its derivative in y.

    One coordinate at a time: of a point of the cube the logs add. y, x and std broadcast; std, the standard deviation
    of the free motion, is positive. y may be unfolded: the kernel is even about every wall.

        p(y | x) = wrapped(y - x) + wrapped(y + x) = 1 + 2 sum_n exp(-n^2 pi^2 std^2 / 2) cos(n pi x) cos(n pi y)
    """
    (near, near_slope), (far, far_slope) = wrapped(y - x, std), wrapped(y + x, std)
    share = (far - near).sigmoid()
    return torch.logaddexp(near, far), torch.lerp(near_slope, far_slope, share)


@dataclass(frozen=True)
class Reflected(VE):
    """`dx = sqrt(2 sigma sigma') dw` with mirrors at the walls of [0, 1]^d, in unfolded coordinates.

    `alpha = 1` and sigma is geometric in t as in `VE` (Lou and Ermon, 2023, arXiv:2304.04740). The law of the folded
    path is within a factor `1 +- 2 exp(-pi^2 sigma^2 / 2)` of the uniform one: 1.4 percent at sigma 1, 5e-9 at
    sigma 2. So a normal start of standard deviation `sigma_max` is, folded, the uniform start of the theory.
    """

    name = "reflected"
    sigma_max: float = 2.0

    fold = staticmethod(fold)
    kernel = staticmethod(kernel)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_max < 1:
            raise ValueError(f"reflected needs sigma_max of at least 1, to end uniform, got {self.sigma_max}")
