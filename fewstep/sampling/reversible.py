"""A reversible solver: the backward pass recomputes the states, up to rounding, instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fewstep.core.methods import Method
from fewstep.sampling.angle import Tableau, increment

METHODS = (
    Method(
        "reversible",
        kind="gradient",
        paper="Efficient, Accurate and Stable Gradients for Neural ODEs (McCallum & Foster, 2024)",
        arxiv="2410.11648",
        claim="exact gradients in constant memory, by a solver that runs backwards algebraically",
        use="reversible_flow",
    ),
)

COUPLING = 0.99  # of the two states; 1 would leave them free to drift apart
Slope = Callable[[Tensor, float], Tensor]
Step = Callable[[Tensor, float, float], Tensor]


def _step(slope: Slope, rule: Tableau) -> Step:
    """What a step of the base method from a to b adds."""
    return lambda y, a, b: increment(rule, lambda s, state: (slope(state[0], s),), a, b, (y,))[0]


def forward(step: Step, y: Tensor, grid: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Both states at the end, from `y = z` at the start: with `psi(y, a, b)` the base method's step,

    `y' = c y + (1 - c) z + psi(z, a, b)`, then `z' = z - psi(y', b, a)`.
    """
    z = y
    for a, b in pairwise(grid):
        y = y * COUPLING + z * (1 - COUPLING) + step(z, a, b)
        z = z - step(y, b, a)
    return y, z


def reversible_flow(slope: Slope, y: Tensor, grid: Sequence[float], rule: Tableau, tensors: Sequence[Tensor]) -> Tensor:
    """The end of `dy/ds = slope(y, s)` over the grid `(B, *shape)`, of the base method's order at twice its cost.

    Its gradients, for y and `tensors`, are those of the steps as they were made: exact but for rounding. Only the
    two states at the end are kept.
    """
    return _Reversible.apply(slope, tuple(grid), rule, y, *tensors)


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slope: Slope, grid: tuple[float, ...], rule: Tableau, y: Tensor, *tensors: Tensor) -> Tensor:
        y, z = forward(_step(slope, rule), y, grid)
        y, z = y.clone(), z.clone()  # on a grid of one time they would be the input itself
        ctx.slope, ctx.grid, ctx.rule, ctx.tensors = slope, grid, rule, tensors
        ctx.save_for_backward(y, z, *tensors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (y, z), tensors, step = ctx.saved_tensors[:2], ctx.tensors, _step(ctx.slope, ctx.rule)
        total = [torch.zeros_like(value) for value in tensors]

        def pull(at: Tensor, a: float, b: float, along: Tensor) -> tuple[Tensor, Tensor]:
            """The step, and `along` times its derivative; what falls to the tensors is added up."""
            with torch.enable_grad():
                at = at.detach().requires_grad_(True)
                value = step(at, a, b)
                first, *rest = torch.autograd.grad(value, (at, *tensors), along, allow_unused=True)
            for i, part in enumerate(rest):
                if part is not None:
                    total[i] = total[i] + part
            return value.detach(), torch.zeros_like(at) if first is None else first

        dy, dz = gradient, torch.zeros_like(gradient)
        for b, a in pairwise(reversed(ctx.grid)):
            added, pulled = pull(y, b, a, -dz)
            z, dy = z + added, dy + pulled
            added, pulled = pull(z, a, b, dy)
            y = (y - z * (1 - COUPLING) - added) / COUPLING
            dy, dz = dy * COUPLING, dz + dy * (1 - COUPLING) + pulled
        return None, None, None, dy + dz, *total
