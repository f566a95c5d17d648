"""STSL: the step of DPS, and one down the spread of what the state leaves open, by one random probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.restoration.dps import residual_weights
from fewstep.restoration.gradients import length, unit
from fewstep.restoration.measured import Problem
from fewstep.restoration.moments import LEAST_ALPHA
from fewstep.sampling.ddim import posterior

METHODS = (
    Method(
        "stsl",
        paper="Beyond First-Order Tweedie: Solving Inverse Problems using Latent Diffusion (Rout et al., 2023)",
        arxiv="2312.00852",
        claim="dps that also lowers the covariance's trace, by a probe; two evaluations, two vector products",
        use="STSL",
        facts={
            "form": "chain",
            "begins": True,
            "measures": ("linear", "nonlinear"),
            "noise": ("none", "gaussian", "poisson"),
            "states": ("data", "latents"),
        },
    ),
)

PROBES = 1 << 26  # the first draw of the probes


@dataclass(frozen=True)
class STSL:
    """`x <- x - zeta grad |y - A(x0_hat)| - probe grad V` at each level, then the ancestral step (algorithm 1).

    V is the trace of `Cov(x0 | x) = (sigma / alpha)^2 (I + sigma^2 dscore/dx)`, of which `eps^T (score(x + h eps) -
    score(x)) / h` with one eps is an estimate without bias as h falls: a second evaluation, and the gradient goes back
    through both. (The paper weighs the trace of dscore/dx by a number of its own at each level; weighed as the
    covariance's, it is finite at both ends.)

    Args:
        zeta: as for "dps". probe: the weight of V; with 0 and one correction it is "dps".
        inner: corrections at each level. width: h over sigma.
    """

    passes: ClassVar[int] = 3
    zeta: float = 1.0
    probe: float = 0.1
    inner: int = 1
    width: float = 0.01

    def __post_init__(self) -> None:
        if not self.zeta >= 0 or not self.probe >= 0 or self.inner < 1 or not self.width > 0:
            raise ValueError(
                "zeta and probe must be at least 0, inner at least 1 and width above 0, got"
                f" {self.zeta}, {self.probe}, {self.inner} and {self.width}"
            )

    @property
    def each(self) -> int:
        """Evaluations of a step."""
        return self.inner * (2 if self.probe else 1)

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        x, y, count = live.start(), live.condition["y"], 0
        weights = residual_weights(problem, y)
        for a, b in pairwise(times):
            for inner in range(self.inner):
                count += 1
                eps = live.source.normal(PROBES + count, tuple(x.shape), x.device, x.dtype) if self.probe else None
                x0, down = self._down(live, process, x, a, eps, problem, y, weights)
                if inner < self.inner - 1:
                    x = x - unit(process, a, a) * down
            s, of_x, of_x0 = posterior(process, a, b)
            x = of_x * x + of_x0 * x0
            if s > 0:
                x = x + s * live.noise()
            x = x - unit(process, a, b) * down
        return x

    def _down(
        self, live: Live, process: Process, x: Tensor, t: float, eps: Tensor | None, problem: Problem, y: Tensor,
        weights: Tensor | float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """x0 at a state, and the gradient of what is to fall."""
        with torch.enable_grad():
            state = x.detach().requires_grad_(True)
            told = live.evaluate(state, t)
            value = self.zeta * length((y - problem.operator(told.x0)) * weights)
            if eps is not None:
                alpha, sigma = process.alpha(t), process.sigma(t)
                score = scored(told.x0, state, alpha, sigma)
                there = state + self.width * sigma * eps
                moved = scored(live.evaluate(there, t).x0, there, alpha, sigma)
                trace = probed(eps, score, moved, self.width * sigma)
                value = value + self.probe * sigma**4 / max(alpha, LEAST_ALPHA * sigma) ** 2 * trace
            (gradient,) = torch.autograd.grad(value.sum(), state)
        return told.x0.detach(), gradient


def scored(x0: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """The score of the state, `(alpha x0 - x) / sigma^2`."""
    return (alpha * x0 - x) / sigma**2


def probed(eps: Tensor, score: Tensor, moved: Tensor, h: float) -> Tensor:
    """`eps^T (score(x + h eps) - score(x)) / h` `(B,)`: the trace of the score's Jacobian, in the mean over eps."""
    return (eps * (moved - score)).flatten(1).sum(1) / h
