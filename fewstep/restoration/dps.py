"""DPS: ancestral steps, each followed by one down the gradient of the measurement's residual."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.core.program import Ask, drive, program
from fewstep.restoration.gradients import length, unit, with_graph
from fewstep.restoration.measured import Problem
from fewstep.sampling.build import fixed_plan
from fewstep.sampling.ddim import posterior

METHODS = (
    Method(
        "dps",
        paper="Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2022)",
        arxiv="2209.14687",
        claim="any differentiable operator, Gaussian or Poisson noise; one vector product",
        use="DPS",
        facts={
            "form": "chain",
            "begins": True,
            "measures": ("linear", "nonlinear"),
            "noise": ("none", "gaussian", "poisson"),
            "states": ("data", "latents"),
        },
    ),
)


@dataclass(frozen=True)
class DPS:
    """`x_b = (ancestral step) - zeta grad |y - A(x0_hat(x_a))|`, the norm of each sample's own residual.

    (Algorithm 1, whose step is `zeta / |r|` along the gradient of `|r|^2`, twice ours.) With Poisson noise the residual
    is weighted by `1 / (2 y)` (section 3.3). zeta: at least 0; with 0 it is "ddpm", bit for bit.
    """

    passes: ClassVar[int] = 3
    zeta: float = 1.0

    def __post_init__(self) -> None:
        if not self.zeta >= 0:
            raise ValueError(f"zeta must be at least 0, got {self.zeta}")

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        y = live.condition["y"]
        weights = residual_weights(problem, y)

        def value(x0: Tensor) -> Tensor:
            return self.zeta * length((y - problem.operator(x0)) * weights)

        return descending(live, process, times, value if self.zeta else None)


def descending(
    live: Live, process: Process, times: Sequence[float], value: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """As "ddpm" with an x0 that takes the step down a value `(B,)` of it: moved by that over the coefficient of x0.

    The gradient is that in the state. Without a value it is "ddpm", bit for bit.
    """
    counted = pairwise(times)

    def answer(asked: Ask) -> tuple[Tensor, str]:
        x, (a, b) = asked[0], next(counted)
        if value is None:
            told = live.evaluate(x, a)
            return told.value, told.kind
        x0, _, gradient = with_graph(live, x, a, value)
        return x0 - (unit(process, a, b) / posterior(process, a, b)[2]) * gradient, "x0"

    plan = fixed_plan(process, "ddpm", timesteps=list(times))
    return drive(program(plan.table, live.start(), live.source), answer)


def residual_weights(problem: Problem, y: Tensor) -> Tensor | float:
    """What a residual is weighted by: 1, or with noise whose variance is the signal `1 / sqrt(2 y)`, y being at least
    one hundredth of its mean."""
    if getattr(problem.law, "covariance", None) is not None:
        return 1.0
    variance = problem.law.variance(y)
    least = 0.01 * variance.flatten(1).mean(1).reshape(-1, *[1] * (y.ndim - 1))
    return (2 * torch.maximum(variance, least)).rsqrt()
