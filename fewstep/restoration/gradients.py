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
