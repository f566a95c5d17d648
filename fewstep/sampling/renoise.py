"""Solvers of restoration: each step's noise partly or wholly fresh, and jumps back up to noisier levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.sampling.ddim import noisy_step

METHODS = (
    Method(
        "renoise",
        paper="Denoising Diffusion Models for Plug-and-Play Image Restoration (Zhu et al., 2023)",
        arxiv="2305.08995",
        claim="a share of each step's noise is fresh: 0 is ddim, 1 is multistep-consistency",
        use="renoise",
        facts={"stochastic": True, "drift_order": 0},
    ),
    Method(
        "resampled",
        paper="RePaint: Inpainting using Denoising Diffusion Probabilistic Models (Lugmayr et al., 2022)",
        arxiv="2201.09865",
        claim="ancestral steps with jumps back up, which harmonise what is known with what is drawn",
        use="resampled",
        facts={"stochastic": True, "drift_order": 0},
    ),
)


def renoise(trace: Trace, process: Process, times: Sequence[float], share: float = 0.3) -> Value:
    """`x_b = alpha_b x0 + sigma_b (sqrt(1 - share) eps + sqrt(share) z)` (DiffPIR, equation 15; share is its zeta).

    share: 0 to 1. With 0 it is "ddim", with 1 "multistep-consistency".
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    x = trace.start()
    for a, b in pairwise(times):
        answer, sigma = trace.evaluate(x, a), process.sigma(b)
        if sigma == 0:
            x = answer.x0 * process.alpha(b)
            continue
        if share < 1:
            x = answer.x0 * process.alpha(b) + answer.eps * (sigma * math.sqrt(1 - share))
        else:
            x = answer.x0 * process.alpha(b)
        if share > 0:
            x = x + trace.noise(a, b) * (sigma * math.sqrt(share))
    return x


def resampled(trace: Trace, process: Process, times: Sequence[float], length: int = 2, repeats: int = 2) -> Value:
    """Ancestral steps; after every `length` of them, back up by as many and down again, `repeats` times in all.

    From b up to c, `x_c = (alpha_c / alpha_b) x_b + sqrt(sigma_c^2 - (alpha_c / alpha_b)^2 sigma_b^2) z`, which has the
    law of the process at c. It is RePaint's resampling (Algorithm 1 and appendix B) and the time travel of DDNM; with
    repeats = 1 it is "ddpm". A grid of n steps takes `n + (repeats - 1) length floor(n / length)` evaluations.
    """
    if length < 1 or repeats < 1:
        raise ValueError(f"length and repeats must be at least 1, got {length} and {repeats}")
    x = trace.start()
    for k, (a, b) in enumerate(pairwise(times), 1):
        x = noisy_step(trace, process, x, a, b, trace.evaluate(x, a), 1.0)
        if k % length:
            continue
        for _ in range(repeats - 1):
            x = _up(trace, process, x, times[k], times[k - length])
            for a_, b_ in pairwise(times[k - length : k + 1]):
                x = noisy_step(trace, process, x, a_, b_, trace.evaluate(x, a_), 1.0)
    return x


def _up(trace: Trace, process: Process, x: Value, b: float, c: float) -> Value:
    ratio = process.alpha(c) / process.alpha(b)
    noise = math.sqrt(max(process.sigma(c) ** 2 - (ratio * process.sigma(b)) ** 2, 0.0))
    return x * ratio + trace.noise() * noise
