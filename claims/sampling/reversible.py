"""Claims of fewstep/sampling/reversible.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from claims.common import F64, VP, Claim, Noise, Outcome, gap
from claims.gradients import of_noise, through
from claims.problems import smooth
from fewstep.sampling.adjoint import adjoint_flow
from fewstep.sampling.angle import Angle, increment, tableau
from fewstep.sampling.reversible import forward, reversible_flow


def _exact(seed: int) -> Outcome:
    """Gradients against autograd through the very steps that were made; the adjoint is that of its own steps."""
    model, frame, rule = smooth(VP()), Angle(VP()), tableau("midpoint")
    noise = Noise(seed).normal(0, (64, 2), "cpu", F64)
    grid = [frame.angle(1.0) + (0.01 - frame.angle(1.0)) * k / 20 for k in range(21)]

    def slope(y: Tensor, angle: float) -> Tensor:
        return frame.slope(model, y, angle, {})

    def step(y: Tensor, a: float, b: float) -> Tensor:
        return increment(rule, lambda s, state: (slope(state[0], s),), a, b, (y,))[0]

    def error(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor]) -> float:
        return gap(*(of_noise(noise, way, torch.square) for way in (ours, theirs)))

    ours = error(lambda y: reversible_flow(slope, y, grid, rule, []), lambda y: forward(step, y, grid)[0])
    theirs = error(lambda y: adjoint_flow(slope, y, grid, rule, []), lambda y: through(slope, y, grid, rule))
    about = f"20 midpoint steps, smooth 5-component mixture, vp, 64 noises; {math.log10(theirs / ours):.0f} digits"
    unit = "relative difference from autograd through the steps"
    return Outcome(ours, theirs, "the adjoint ODE on the same grid", about, unit=unit)


CLAIMS = (Claim("reversible", "its gradients are those of its own steps", _exact),)
