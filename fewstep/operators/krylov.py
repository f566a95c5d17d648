"""Krylov methods for systems that are known by their products alone; each sample of a batch has steps of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOOK = 8  # steps between two looks at whether all samples have converged


@dataclass(frozen=True)
class Solved:
    """u `(B, ...)`, the residual of each sample over its right-hand side `(B,)`, and the steps that were made."""

    value: Tensor
    residual: Tensor
    steps: int


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample in float64, shaped to multiply it."""
    return (a.double() * b.double()).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    r: Tensor,
    precondition: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = 1e-6,
    most: int = 200,
    start: Tensor | None = None,
) -> Solved:
    """`M u = r` for symmetric M that is not negative; each sample `(B, ...)` has steps of its own.

    A sample stops at a residual of `tolerance` times its r; sums are in float64.
    """
    u = torch.zeros_like(r) if start is None else start.clone()
    left = r.clone() if start is None else r - apply(start)
    size = dot(r, r).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    better = precondition(left) if precondition else left
    direction, product, steps = better.clone(), dot(left, better), 0
    for steps in range(1, most + 1):
        image = apply(direction)
        curvature = dot(direction, image)
        # A sample that has converged, or whose direction M does not see, stands still.
        on = (dot(left, left).sqrt() > tolerance * size) & (curvature > 0)
        step = torch.where(on, product / torch.where(on, curvature, 1.0), 0.0).to(r.dtype)
        u = u + step * direction
        left = left - step * image
        better = precondition(left) if precondition else left
        following = dot(left, better)
        ratio = torch.where(on, following / torch.where(product > 0, product, 1.0), 0.0).to(r.dtype)
        direction, product = better + ratio * direction, following
        if steps % LOOK == 0 and not bool(on.any()):
            break
    left = r - apply(u)
    return Solved(u, (dot(left, left).sqrt() / size).flatten(), steps)


def gcr(apply: Callable[[Tensor], Tensor], r: Tensor, steps: int, tolerance: float = 1e-10) -> Solved:
    """`M u = r` for any M, by generalised conjugate residuals: u has the least residual of all Krylov vectors.

    (Eisenstat, Elman and Schultz, 1983). It needs no symmetry and never does worse than u = 0.
    """
    u, left = torch.zeros_like(r), r.clone()
    size = dot(r, r).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    directions: list[Tensor] = []
    images: list[Tensor] = []
    for _ in range(steps):
        direction, image = left, apply(left)
        for other, its in zip(directions, images, strict=True):
            share = dot(image, its).to(r.dtype)
            direction, image = direction - share * other, image - share * its
        length = dot(image, image).sqrt()
        on = (length > 0) & (dot(left, left).sqrt() > tolerance * size)
        unit = torch.where(on, 1 / torch.where(on, length, 1.0), 0.0).to(r.dtype)
        direction, image = direction * unit, image * unit
        step = dot(left, image).to(r.dtype)
        u, left = u + step * direction, left - step * image
        directions.append(direction)
        images.append(image)
    return Solved(u, (dot(left, left).sqrt() / size).flatten(), steps)
