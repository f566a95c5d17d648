"""The samplers of two bridge papers, for every process: DDBM's hybrid of both equations, and ResShift's chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.sampling.common import ddim
from fewstep.sampling.ddim import ancestral

# Neither follows the reverse SDE's drift alone: order 0 towards it.
METHODS = (
    Method(
        "bridge-hybrid",
        paper="Denoising Diffusion Bridge Models (Zhou et al., 2024)",
        arxiv="2309.16948",
        claim="each step part reverse SDE, then Heun's method on the ODE; noise leaves a pinned end",
        use="bridge_hybrid",
        facts={"stochastic": True, "drift_order": 0},
    ),
    Method(
        "shift-ancestral",
        paper="ResShift: Efficient Diffusion Model for Image Super-resolution by Residual Shifting (Yue et al., 2023)",
        arxiv="2307.12348",
        claim="draws from the posterior of a chain whose noise only grows",
        use="shift_ancestral",
        facts={"stochastic": True, "drift_order": 0},
    ),
)


def bridge_hybrid(trace: Trace, process: Process, times: Sequence[float], noisy: float = 0.33) -> Value:
    """Algorithm 1 of DDBM: the first `noisy` of every step along the reverse SDE, the rest by Heun's method on the ODE.

    The SDE's part is its exact step for a constant x0, `ddpm`'s, where the paper takes Euler's: of the same order, and
    finite from a pinned end, where the drift is not. The step to sigma = 0 takes the predicted x0. So N steps that end
    there cost 3 N - 2 evaluations. With `noisy = 0` it is `heun`.

    Raises:
        ValueError: `noisy` outside 0 to 1.
    """
    if not 0 <= noisy <= 1:
        raise ValueError(f"noisy must be between 0 and 1, got {noisy}")
    x = trace.start()
    for a, b in pairwise(times):
        if process.sigma(b) == 0:
            return ddim(process, x, a, b, trace.evaluate(x, a))
        if noisy > 0:
            middle = b if noisy == 1 else a + noisy * (b - a)
            std = ancestral(process, a, middle, 1.0)
            keep = math.sqrt(max(process.sigma(middle) ** 2 - std**2, 0.0)) / process.sigma(a)
            x0 = trace.evaluate(x, a).x0
            x = x * keep + x0 * (process.alpha(middle) - process.alpha(a) * keep)
            x = x + trace.noise(a, middle) * std
            if middle == b:
                continue
            a = middle
        slope = trace.evaluate(x, a).velocity
        predicted = x + slope * (b - a)
        x = x + (slope + trace.evaluate(predicted, b).velocity) * (0.5 * (b - a))
    return x


def shift_ancestral(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """ResShift's reverse chain, for any process.

    Its forward chain adds noise of variance `sigma_a^2 - sigma_b^2` from b to a, with x0 given, so its posterior is

        x_b = alpha_b x0 + (sigma_b / sigma_a)^2 (x_a - alpha_a x0) + sigma_b sqrt(1 - (sigma_b / sigma_a)^2) z:

    DDIM's family with less noise than `ddpm`, because the shrinking of the data is not counted as noise. Where alpha
    is constant the two are one.
    """
    x = trace.start()
    for a, b in pairwise(times):
        ratio = process.sigma(b) / process.sigma(a)
        x0 = trace.evaluate(x, a).x0
        x = x * ratio**2 + x0 * (process.alpha(b) - process.alpha(a) * ratio**2)
        if ratio > 0:
            x = x + trace.noise(a, b) * (process.sigma(b) * math.sqrt(max(1 - ratio**2, 0.0)))
    return x
