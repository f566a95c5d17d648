"""Steps twice as long as the grid's, each followed by noise for half of the way back."""

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
        "ddim-double",
        paper="On Distillation of Guided Diffusion Models (Meng et al., 2023)",
        arxiv="2210.03142",
        claim="two intervals down by DDIM, one back by noise: a stochastic sampler for students of few steps",
        use="ddim_double",
        facts={"stochastic": True},
    ),
)


def ddim_double(trace: Trace, process: Process, times: Sequence[float]) -> Value:
    """From each time a DDIM step over two intervals, then noise up over one, `x_s = alpha_s / alpha_k x_k +
    sqrt(sigma_s^2 - (alpha_s / alpha_k)^2 sigma_k^2) z`; the last interval is a plain step (Meng et al., Algorithm 4).

    As many evaluations as intervals. Going up is the process itself, so where a step lands on the process's law at its
    end, every state has the law of its time. Without the noise it has the drift of the reverse SDE (`ddim`'s eta = 1),
    to first order.
    """
    x = trace.start()
    for (a, b), end in zip(pairwise(times), [*times[2:], None], strict=True):
        answer = trace.evaluate(x, a)
        if end is None:
            return ddim(process, x, a, b, answer)
        ratio = process.alpha(b) / process.alpha(end)
        noise = math.sqrt(max(process.sigma(b) ** 2 - (ratio * process.sigma(end)) ** 2, 0.0))
        x = ddim(process, x, a, end, answer) * ratio + trace.noise() * noise
    return x
