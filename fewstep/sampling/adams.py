"""Adams-Bashforth solvers: DEIS, log-SNR Adams-Bashforth, LMS, and Adams-Bashforth on the flow's velocity."""

from __future__ import annotations

from collections.abc import Sequence

from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.trace import Trace, Value
from fewstep.sampling.common import Frame, adams_bashforth

METHODS = (
    Method(
        "deis",
        paper="Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2023)",
        arxiv="2204.13902",
        claim="order p at one evaluation a step: eps is a polynomial in t (tAB-DEIS)",
        use="deis",
        facts={"order": "p", "orders": (1, 2, 3, 4), "any_order": True},
    ),
    Method(
        "ab",
        paper="Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2023)",
        arxiv="2204.13902",
        claim="order p at one evaluation a step: eps is a polynomial in log-SNR",
        use="ab",
        facts={"order": "p", "orders": (1, 2, 3, 4, 5), "any_order": True},
    ),
    Method(
        "lms",
        paper="k-diffusion's linear multistep sampler (Crowson, 2022)",
        claim="order p at one evaluation a step: eps is a polynomial in sigma/alpha, up to sigma = 0 itself",
        use="lms",
        facts={"order": "p", "orders": (1, 2, 3, 4), "any_order": True},
    ),
    Method(
        "vab",
        paper="Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow (Liu et al., 2023)",
        arxiv="2209.03003",
        claim="order p at one evaluation a step on the flow's velocity, regular at both ends of every process",
        use="vab",
        facts={"order": "p", "orders": (1, 2, 3, 4), "any_order": True},
    ),
)


def deis(trace: Trace, process: Process, times: Sequence[float], order: int = 3) -> Value:
    """tAB-DEIS: exponential Adams-Bashforth with eps a polynomial in the process's time (Zhang & Chen, eq. 15)."""
    return adams_bashforth(trace, process, times, Frame("eps", "t"), order)


def ab(trace: Trace, process: Process, times: Sequence[float], order: int = 3) -> Value:
    """Exponential Adams-Bashforth with eps a polynomial in log-SNR."""
    return adams_bashforth(trace, process, times, Frame("eps", "log_snr"), order)


def lms(trace: Trace, process: Process, times: Sequence[float], order: int = 4) -> Value:
    """Adams-Bashforth in sigma/alpha on `x / alpha`: the only variable of the three that reaches sigma = 0."""
    return adams_bashforth(trace, process, times, Frame("eps", "mu"), order)


def vab(trace: Trace, process: Process, times: Sequence[float], order: int = 2) -> Value:
    """Adams-Bashforth on `eps - x0` in sigma/(alpha + sigma): the rectified flow's own, for any process."""
    return adams_bashforth(trace, process, times, Frame("flow", "mu"), order)
