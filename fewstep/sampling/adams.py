"""Adams-Bashforth solvers: DEIS, LMS, in log-SNR on eps and on x0, on the flow's velocity, and on v in its angle."""

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
        claim="order p at one evaluation per step: eps is a polynomial in t (tAB-DEIS)",
        use="deis",
        facts={"order": 0, "plus_p": True, "orders": (1, 2, 3, 4), "any_order": True},
    ),
    Method(
        "ab",
        paper="Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2023)",
        arxiv="2204.13902",
        claim="order p at one evaluation per step: eps is a polynomial in log-SNR",
        use="ab",
        facts={"order": 0, "plus_p": True, "orders": (1, 2, 3, 4, 5), "any_order": True},
    ),
    Method(
        "lms",
        paper="k-diffusion's linear multistep sampler (Crowson, 2022)",
        claim="order p at one evaluation per step: eps is a polynomial in sigma/alpha, up to sigma = 0 itself",
        use="lms",
        facts={"order": 0, "plus_p": True, "orders": (1, 2, 3, 4), "any_order": True},
    ),
    Method(
        "ab-x0",
        paper="DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022)",
        arxiv="2211.01095",
        claim="order p at one evaluation per step: x0 is a polynomial in log-SNR (dpmpp-3m at order 3)",
        use="ab_x0",
        facts={"order": 0, "plus_p": True, "orders": (1, 2, 3, 4), "any_order": True},
    ),
    Method(
        "ab-v",
        paper="Progressive Distillation for Fast Sampling of Diffusion Models (Salimans & Ho, 2022)",
        arxiv="2202.00512",
        claim="order p at one evaluation per step on v in its angle, regular at both ends of every process",
        use="ab_v",
        facts={"order": 0, "plus_p": True, "orders": (1, 2, 3, 4), "any_order": True},
    ),
    Method(
        "vab",
        paper="Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow (Liu et al., 2023)",
        arxiv="2209.03003",
        claim="order p at one evaluation per step on the flow's velocity, regular at both ends of every process",
        use="vab",
        facts={"order": 0, "plus_p": True, "orders": (1, 2, 3, 4), "any_order": True},
    ),
)


def deis(trace: Trace, process: Process, times: Sequence[float], order: int = 3) -> Value:
    """tAB-DEIS: exponential Adams-Bashforth with eps a polynomial in the process's time (Zhang & Chen, eq. 15)."""
    return adams_bashforth(trace, process, times, Frame("eps", "t"), order)


def ab(trace: Trace, process: Process, times: Sequence[float], order: int = 3) -> Value:
    """Exponential Adams-Bashforth with eps a polynomial in log-SNR."""
    return adams_bashforth(trace, process, times, Frame("eps", "log_snr"), order)


def lms(trace: Trace, process: Process, times: Sequence[float], order: int = 4) -> Value:
    """Adams-Bashforth in sigma/alpha on `x / alpha`: the only variable of the three that reaches sigma = 0.

    This is rho-AB-DEIS as well (Zhang & Chen, section 4): their rho is sigma/alpha, their transformed state x / alpha.
    """
    return adams_bashforth(trace, process, times, Frame("eps", "mu"), order)


def ab_x0(trace: Trace, process: Process, times: Sequence[float], order: int = 2) -> Value:
    """Exponential Adams-Bashforth with x0 a polynomial in log-SNR.

    Order 2 is DPM-Solver++(2M) in its "heun" form (`dpmpp-2m` is the "midpoint" one), order 3 is `dpmpp-3m`. From order
    5 on it is unstable on the long last steps of the usual grids: x0 is extrapolated over a whole unit of log-SNR.
    """
    return adams_bashforth(trace, process, times, Frame("x0", "log_snr"), order)


def ab_v(trace: Trace, process: Process, times: Sequence[float], order: int = 2) -> Value:
    """Adams-Bashforth on v in the angle `phi = atan2(sigma, alpha)`.

    With `r = hypot(alpha, sigma)` the state on the unit circle is `x / r = cos(phi) x0 + sin(phi) eps`, so along the
    ODE `d(x / r)/d phi = -sin(phi) x0 + cos(phi) eps = v / r`: no singular end, whatever r does (Salimans & Ho,
    appendix D, for r = 1).
    """
    return adams_bashforth(trace, process, times, Frame("v", "mu"), order)


def vab(trace: Trace, process: Process, times: Sequence[float], order: int = 2) -> Value:
    """Adams-Bashforth on `eps - x0` in sigma/(alpha + sigma): the rectified flow's own, for any process."""
    return adams_bashforth(trace, process, times, Frame("flow", "mu"), order)
