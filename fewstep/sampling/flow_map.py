"""Sampling of flow maps: a jump from each time of the grid to the next, with or without fresh noise between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.sampling.common import ddim

METHODS = (
    Method(
        "flow-map",
        paper="Consistency Trajectory Models: Learning Probability Flow ODE Trajectory of Diffusion (Kim et al., 2024)",
        arxiv="2310.02279",
        claim="one evaluation goes from any time to any other: every grid ends where the probability flow does",
        use="flow_map",
        facts={"to": True},
    ),
)


def flow_map(trace: Trace, process: Process, times: Sequence[float], gamma: float = 0.0) -> Value:
    """DDIM's step with the answer of a model that is told where it goes, `model(x, a, to=b)`, which makes it exact.

    `gamma` is the paper's gamma-sampling (Algorithm 3): jump to the time whose noise-to-signal ratio is
    `sqrt(1 - gamma^2)` of the next time's, and add noise of `gamma` of it. 0 is deterministic; 1 jumps to the clean
    end each time, as "multistep-consistency" does. The last step adds none.

    Raises:
        ValueError: gamma outside 0 to 1.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be between 0 and 1, got {gamma}")
    x = trace.start()
    for a, b in pairwise(times):
        if gamma == 0 or b == times[-1]:
            x = ddim(process, x, a, b, trace.evaluate(x, a, to=b))
            continue
        to = process.time(process.log_snr(b) - 0.5 * math.log1p(-(gamma**2))) if gamma < 1 else process.t_zero
        x = ddim(process, x, a, to, trace.evaluate(x, a, to=to)) * (process.alpha(b) / process.alpha(to))
        x = x + trace.noise() * (gamma * process.sigma(b))
    return x
