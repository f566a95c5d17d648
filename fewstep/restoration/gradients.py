"""Steps along the gradient of a network's x0, in the units of a variance-preserving process."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.core.live import Live
from fewstep.core.process import Process


def with_graph(live: Live, x: Tensor, t: float, value: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """x0 at a state, a value `(B,)` of it, and the gradient of the values in the state; one evaluation.

    Each sample's value depends on its own row alone, so the gradient of the sum is that of each.
    """
    with torch.enable_grad():
        state = x.detach().requires_grad_(True)
        x0 = live.evaluate(state, t).x0
        values = value(x0)
        (gradient,) = torch.autograd.grad(values.sum(), state)
    return x0.detach(), values.detach(), gradient


def unit(process: Process, a: float, b: float) -> float:
    """The factor of a gradient in the state at a, for a step of the state at b; 1 where alpha^2 + sigma^2 = 1.

    Methods state their steps for those. Any other state is such a one times `c = sqrt(alpha^2 + sigma^2)`, so a step
    there is one of `c_a c_b` here, and the samples are the same.
    """
    return math.hypot(process.alpha(a), process.sigma(a)) * math.hypot(process.alpha(b), process.sigma(b))


def length(r: Tensor) -> Tensor:
    """The norm of each sample's residual `(B,)`, with a gradient of zero at zero."""
    squares = r.flatten(1).square().sum(1)
    return torch.where(squares > 0, squares.clamp_min(torch.finfo(r.dtype).tiny).sqrt(), 0.0)


def squares(x: Tensor) -> Tensor:
    """The sum of squares of each sample `(B,)`, in float64."""
    return x.double().flatten(1).square().sum(1)


def reaching(r: Tensor, image: Tensor, bound: Tensor) -> Tensor:
    """The least h >= 0 `(B,)` with `|r - h image|^2 <= bound`; where there is none, that of the least energy.

    `r` is the residual and `image` its change along the direction; h is 0 where the direction does not go down.
    """
    now, slope, bend = squares(r), (r.double() * image.double()).flatten(1).sum(1), squares(image)
    down = (now > bound) & (slope > 0) & (bend > 0)
    root = (slope**2 - bend * (now - bound)).clamp_min(0).sqrt()
    # The smaller root without a difference of near numbers; without one root is 0 and this is the least energy's.
    near = torch.where(root > 0, (now - bound) / (slope + root), slope / torch.where(bend > 0, bend, 1.0))
    return torch.where(down, near, 0.0)


def rows(factor: Tensor, like: Tensor) -> Tensor:
    """A factor of each sample `(B,)`, to multiply samples by."""
    return factor.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def fitted(measured: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, bound: Tensor, steps: int) -> Tensor:
    """x moved until `|y - A(x)|^2` is at most the bound, `()` or `(B,)`, or as far as so many steps lead.

    They are conjugate gradients of `|y - A(x)|^2` (Fletcher and Reeves, 1964), on a linear A those of least squares.
    None goes further than the bound asks: beyond it, the noise would be fitted. How far that is is read off A's change
    along the step, by a difference, so that no rate has to be found. Two forward passes of A and a backward one a step.
    """
    way, before = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.float64, device=x.device)
    small = torch.finfo(x.dtype).eps ** (1 / 3)
    for _ in range(steps):
        with torch.enable_grad():
            state = x.detach().requires_grad_(True)
            told = measured(state)
            (down,) = torch.autograd.grad((y - told).square().sum() / -2, state)
        size, r = squares(down), y - told.detach()
        way = down + rows(torch.where(before > 0, size / torch.where(before > 0, before, 1.0), 0.0), x) * way
        before = size
        h = small * squares(x).sqrt().clamp_min(1.0) / squares(way).sqrt().clamp_min(1e-30)
        with torch.no_grad():
            image = (measured(x + rows(h, x) * way) - told.detach()) / rows(h, y)
        x = x + rows(reaching(r, image, bound), x) * way
    return x
