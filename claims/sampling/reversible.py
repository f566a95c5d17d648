"""Claims of fewstep/sampling/reversible.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from claims.claim import Claim, Outcome
from claims.problems import smooth
from fewstep.core.noise import Noise
from fewstep.processes.vp import VP
from fewstep.sampling.adjoint import adjoint_flow
from fewstep.sampling.angle import Angle, increment, tableau
from fewstep.sampling.reversible import forward, reversible_flow

F64 = torch.float64


def _exact(seed: int) -> Outcome:
    """Gradients against autograd through the very steps that were made; the adjoint is that of its own steps."""
    model, frame, rule = smooth(VP()), Angle(VP()), tableau("midpoint")
    noise = Noise(seed).normal(0, (64, 2), "cpu", F64)
    grid = [frame.angle(1.0) + (0.01 - frame.angle(1.0)) * k / 20 for k in range(21)]

    def slope(y: Tensor, angle: float) -> Tensor:
        return frame.slope(model, y, angle, {})

    def step(y: Tensor, a: float, b: float) -> Tensor:
        return increment(rule, lambda s, state: (slope(state[0], s),), a, b, (y,))[0]

    def plain(y: Tensor) -> Tensor:
        for a, b in zip(grid, grid[1:], strict=False):
            y = y + step(y, a, b)
        return y

    errors = []
    for ours, theirs in (
        (lambda y: reversible_flow(slope, y, grid, rule, []), lambda y: forward(step, y, grid)[0]),
        (lambda y: adjoint_flow(slope, y, grid, rule, []), plain),
    ):
        gradients = []
        for way in (ours, theirs):
            start = noise.clone().requires_grad_(True)
            gradients.append(torch.autograd.grad(way(start).square().sum(), start)[0])
        errors.append(float((gradients[0] - gradients[1]).norm() / gradients[1].norm()))
    return Outcome(
        errors[0],
        errors[1],
        "the adjoint ODE on the same grid",
        f"20 midpoint steps, smooth 5-component mixture, vp, 64 noises; {math.log10(errors[1] / errors[0]):.0f} digits",
        unit="relative difference from autograd through the steps",
    )


CLAIMS = (Claim("reversible", "its gradients are those of its own steps", _exact),)
