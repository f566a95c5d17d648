"""FlowDPS: the clean part of a state is moved to the measurement, and part of its noise drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.restoration.gradients import fitted
from fewstep.restoration.measured import Problem

METHODS = (
    Method(
        "flowdps",
        paper="FlowDPS: Flow-Driven Posterior Sampling for Inverse Problems (Kim et al., 2025)",
        arxiv="2503.08136",
        claim="flows in latents, any operator: few gradients of the decoder a step, none of the network",
        use="FlowDPS",
        facts={
            "form": "chain",
            "measures": ("linear", "nonlinear"),
            "noise": ("none", "gaussian"),
            "states": ("latents",),
        },
    ),
)


@dataclass(frozen=True)
class FlowDPS:
    """With `u = sigma / (alpha + sigma)`, the time of a flow, and z0 and eps the two parts of the state (algorithm 1):

        z0_y = (1 - u_a) z0 + u_a fit(z0)
        eps' = sqrt(u_b) eps + sqrt(1 - u_b) w,    w ~ N(0, 1)
        z_b  = alpha_b z0_y + sigma_b eps'

    The fit moves z0 down `|y - A D(z)|`. (The paper's steps have a rate that is found for each task; ours go as far as
    the noise of the measurement allows.)

    inner: gradient steps of a fit, at most.
    """

    inner: int = 3

    def __post_init__(self) -> None:
        if self.inner < 1:
            raise ValueError(f"inner must be at least 1, got {self.inner}")

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        x, y = live.start(), live.condition["y"]
        bound = problem.energy(y)
        for a, b in pairwise(times):
            told, ((_, _, u), (alpha, sigma, v)) = live.evaluate(x, a), (_parts(process, t) for t in (a, b))
            z0 = (1 - u) * told.x0 + u * fitted(problem.operator, told.x0, y, bound, self.inner)
            x = alpha * z0
            if sigma > 0:
                x = x + sigma * (v**0.5 * told.eps + (1 - v) ** 0.5 * live.noise())
        return x


def _parts(process: Process, t: float) -> tuple[float, float, float]:
    """alpha, sigma, and the share of the noise in their sum."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return alpha, sigma, sigma / (alpha + sigma)
