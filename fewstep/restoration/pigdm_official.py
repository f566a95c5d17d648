"""PiGDM as its paper steps: the move is added after a DDIM step, not to its x0."""

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
from fewstep.operators.covariance import Same
from fewstep.operators.solve import Inverse
from fewstep.restoration.measured import Problem
from fewstep.sampling.ddim import posterior

METHODS = (
    Method(
        "pigdm-official",
        paper="Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023)",
        claim="pigdm's move added after the step, as published; one vector product",
        use="PiGDMOfficial",
        facts={"form": "chain", "begins": True, "measures": ("linear",), "noise": ("none", "gaussian")},
    ),
)


@dataclass(frozen=True)
class PiGDMOfficial:
    """`x_b = DDIM(x_a, x0_hat) + alpha_a r^2 J^T A^T (r^2 A A^T + S)^{-1} (y - A x0_hat)` (Algorithm 1).

    `r^2 = s^2 v / (s^2 + v)`, `v = (sigma / alpha)^2`. Where the state is not variance preserving, it is the same in
    the units of one that is. eta: of DDIM's noise, 0 to 1. data_std: s.
    """

    passes: ClassVar[int] = 3
    eta: float = 1.0
    data_std: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be between 0 and 1, got {self.eta}")

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        x, y, operator = live.start(), live.condition["y"], problem.operator
        std = self.data_std if self.data_std is not None else problem.model.facts.data_std or 1.0
        for a, b in pairwise(times):
            alpha, sigma = process.alpha(a), process.sigma(a)
            spread = std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)
            with torch.enable_grad():
                state = x.detach().requires_grad_(True)
                x0 = live.evaluate(state, a).x0
                u = Inverse(operator, Same(spread), problem.noise)(y - operator(x0.detach()))
                (back,) = torch.autograd.grad(x0, state, operator.adjoint(u))
            s, of_x, of_x0 = posterior(process, a, b, self.eta)
            x = of_x * x + of_x0 * x0.detach()
            if s > 0:
                x = x + s * live.noise()
            size = (process.alpha(b) ** 2 + process.sigma(b) ** 2) ** 0.5
            x = x + (size * alpha * spread) * back
        return x
