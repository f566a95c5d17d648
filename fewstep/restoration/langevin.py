"""Langevin steps that Metropolis' rule accepts or refuses: draws of any density that has a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.core.noise import Source


def metropolis(
    density: Callable[[Tensor], Tensor], x: Tensor, h: float, moves: int, source: Source, first: int
) -> Tensor:
    """x `(B, *shape)` after `moves` Langevin steps of size h, each row of its own.

    density: log density `(B,)`, up to a number of each row. first: of the `2 moves` draws of the source that are used.
    """

    def target(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            value = density(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    value, gradient = target(x)
    for move in range(moves):
        draw = first + 2 * move
        z = source.normal(draw, tuple(x.shape), x.device, x.dtype)
        mean = x + h * gradient
        there = mean + math.sqrt(2 * h) * z
        value_there, gradient_there = target(there)
        back = (x - there - h * gradient_there).double().flatten(1).square().sum(1)
        forth = (there - mean).double().flatten(1).square().sum(1)
        ratio = value_there - value + (forth - back) / (4 * h)
        chance = source.normal(draw + 1, (len(x), 1), x.device, torch.float64)[:, 0]
        accepted = torch.special.log_ndtr(chance) < ratio
        rows = accepted.reshape(-1, *[1] * (x.ndim - 1))
        x, gradient = torch.where(rows, there, x), torch.where(rows, gradient_there, gradient)
        value = torch.where(accepted, value_there, value)
    return x
