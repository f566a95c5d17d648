"""Multistep sampling of consistency models: a jump to the data, fresh noise, the next jump."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value

METHODS = (
    Method(
        "multistep-consistency",
        paper="Consistency Models (Song et al., 2023)",
        arxiv="2303.01469",
        claim="each prediction of a consistency model is a sample; noised and predicted again, a better one",
        use="multistep_consistency",
        facts={"stochastic": True, "drift_order": 0},
    ),
)


def multistep_consistency(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """`x_s = alpha_s x0 + sigma_s z` with fresh z at every time but the last, whose x0 is the sample (Algorithm 1).

    The trajectory is thrown away at each step, so this follows no differential equation: for a consistency model,
    whose x0 is a sample already, and not the mean of those that an ordinary denoiser gives.
    """
    x = trace.start()
    for a, b in pairwise(times):
        x0 = trace.evaluate(x, a).x0
        x = x0 if b == times[-1] else x0 * process.alpha(b) + trace.noise() * process.sigma(b)
    return x
