"""The SDEs of a stochastic interpolant: one law at every time, whatever the diffusion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.denoisers.interpolant import InterpolantPrediction
from fewstep.processes.interpolants import Interpolant
from fewstep.sampling.common import gauss

METHODS = (
    Method(
        "interpolant-sde",
        paper="Stochastic Interpolants: A Unifying Framework for Flows and Diffusions (Albergo et al., 2023)",
        arxiv="2303.08797",
        claim="any diffusion on the way from one density to another: the samples' law stays the same",
        use="interpolant_sde",
        facts={"live": True, "stochastic": True},
    ),
)

POINTS = 32  # of the quadrature of the diffusion over a step


def interpolant_sde(
    live: Live, process: Process, times: Sequence[float], epsilon: float | Callable[[float], float] = 1.0
) -> Tensor:
    """`dx = (v - eps(t) s) dt + sqrt(2 eps(t)) dw` run down in t, v the velocity and s the score.

    A step from a to b takes the means of x0, x1 and z given x_a for their values and solves the rest exactly:

        x_b = a_b x0 + b_b x1 + gamma_b (k z + sqrt(1 - k^2) w),  k = exp(-integral of eps / gamma^2 from b to a),

    finite at both ends, where gamma is 0, and for every eps. Its order is 1 (but for a logarithm with "brownian") where
    eps falls like gamma^2 at the ends; a stronger diffusion there costs accuracy. With eps = 0 it follows the ODE.
    A Gaussian process counts as a one-sided interpolant: `alpha x0 + sigma eps` with sigma in the place of gamma.

    Args:
        epsilon: a number c >= 0 for `eps(t) = c gamma(t)^2`, or eps(t) >= 0 itself, a function of the process's time.

    Raises:
        ValueError: a negative epsilon; a diffusion for an interpolant whose latent noise is zero or not predicted.
    """
    if not callable(epsilon) and not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be at least 0 and finite, got {epsilon}")
    two_sided = isinstance(process, Interpolant) and process.latent != "zero"
    if isinstance(process, Interpolant) and not two_sided and process.weights and epsilon != 0:
        raise ValueError("without a latent noise there is no score to diffuse by: choose one, latent='brownian' say")
    gamma = process.gamma if two_sided else process.sigma  # type: ignore[attr-defined]
    x = live.start()
    for a, b in pairwise(times):
        prediction = live.evaluate(x, a)
        if isinstance(process, Interpolant) and isinstance(prediction, InterpolantPrediction) and two_sided:
            at_b = _curve(process, b)
            rest, latent = prediction.data * at_b[0] + prediction.other * at_b[1], prediction.latent
        elif two_sided and not live.counting:
            raise ValueError("the SDE needs the score: a network that predicts 'both', or a closed form")
        else:
            rest, latent = prediction.x0 * process.alpha(b), prediction.eps
        kept = math.exp(-(_turned(epsilon, gamma, a, b) if callable(epsilon) else epsilon * (a - b)))
        x = rest + latent * (gamma(b) * kept)
        # Drawn in any case, so that the steps' noise is that of their number.
        x = x + live.noise() * (gamma(b) * math.sqrt(-math.expm1(2 * math.log(kept))) if kept > 0 else gamma(b))
    return x


def _curve(process: Interpolant, t: float) -> tuple[float, float]:
    a, b, _, _ = process.curve(torch.tensor(t, dtype=torch.float64))
    return float(a), float(b)


def _turned(of: Callable[[float], float], gamma: Callable[[float], float], a: float, b: float) -> float:
    """The integral of eps / gamma^2 from b to a; infinite where gamma is 0 at an end and eps is not."""
    points, weights = gauss(POINTS)
    total = 0.0
    for u, w in zip((b + (a - b) * points).tolist(), weights.tolist(), strict=True):
        if (value := of(u)) < 0:
            raise ValueError(f"epsilon must be at least 0, got {value} at t = {u:g}")
        if value > 0:
            total += w * (a - b) * value / max(gamma(u) ** 2, 1e-300)
    if any(gamma(t) == 0 and of(t) > 0 for t in (a, b)):
        return math.inf
    return total
