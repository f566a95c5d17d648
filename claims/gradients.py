"""What the claims about gradients through a sampler share: a reward, its gradient for the noise, and autograd's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from claims.common import Outcome
from fewstep.sampling.angle import increment


def reward(x: Tensor) -> Tensor:
    """Nearness to a fixed point, a sample at a time."""
    return -(x - 0.5).flatten(1).square().sum(1)


def of_noise(noise: Tensor, way: Callable[[Tensor], Tensor], value: Callable[[Tensor], Tensor] = reward) -> Tensor:
    """The gradient for the noise of the value that it leads to."""
    start = noise.clone().requires_grad_(True)
    return torch.autograd.grad(value(way(start)).sum(), start)[0]


def through(slope: Callable[[Tensor, float], Tensor], y: Tensor, times: Sequence[float], rule: Any) -> Tensor:
    """The plain steps of a Runge-Kutta rule, for autograd to go back through."""
    for a, b in pairwise(times):
        y = y + increment(rule, lambda s, state: (slope(state[0], s),), a, b, (y,))[0]
    return y


def cosine(ours: Tensor, theirs: Tensor, about: str) -> Outcome:
    """Whether two gradients point the same way."""
    found = float(torch.cosine_similarity(ours.flatten(), theirs.flatten(), 0))
    return Outcome(found, 0.99, "tolerance", about, better="high", unit="cosine")
