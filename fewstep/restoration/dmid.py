"""DMID: a noisy picture is a state of the chain already, and its denoising the chain's end, several times averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.operators.covariance import Same
from fewstep.operators.noise import Poisson, PoissonGaussian
from fewstep.operators.operator import Operator
from fewstep.restoration.anscombe import Anscombe
from fewstep.restoration.dr2 import check_identity, level_time
from fewstep.restoration.measured import Problem
from fewstep.sampling.ddim import posterior

METHODS = (
    Method(
        "dmid",
        paper="Stimulating Diffusion Model for Image Denoising via Adaptive Embedding and Ensembling (Li et al., 2023)",
        arxiv="2307.03992",
        claim="a noisy picture as a state of its own level; runs averaged trade detail for squared error",
        use="DMID",
        facts={"form": "chain", "measures": ("linear",), "noise": ("gaussian", "poisson"), "needs": "identity"},
    ),
)


@dataclass(frozen=True)
class DMID:
    """`alpha y` is a state of the level at which `sigma / alpha` is y's noise; from there `runs` runs of stochastic
    DDIM to the end, averaged. The operator is the identity.

    One run is a draw of the posterior; many are its mean, which has the least squared error. Counted noise is first
    made Gaussian by the generalised Anscombe transform, stretched to the model's range, and the average is taken back
    by its unbiased inverse. The evaluations are shared among the runs, at even times of the process.

    Args:
        eta: of DDIM's noise, 0 to 1. level: the noise over signal of the start in place of y's.
    """

    runs: int = 1
    eta: float = 1.0
    level: float | None = None

    def __post_init__(self) -> None:
        if self.runs < 1 or not 0 <= self.eta <= 1 or (self.level is not None and not self.level > 0):
            raise ValueError(
                f"runs must be at least 1, eta 0 to 1 and level above 0, got {self.runs}, {self.eta} and {self.level}"
            )

    @property
    def each(self) -> int:
        """Evaluations of a step, of all runs."""
        return self.runs

    def check(self, model: Denoiser, operator: Operator, law: Any) -> None:
        """`ValueError` unless a noisy sample is given, with noise of a level of the process."""
        check_identity("dmid", operator)
        if isinstance(law, Poisson | PoissonGaussian):
            if model.value_range is None:
                raise ValueError("'dmid' stretches counted noise to the model's range, and this model has none")
            return
        if not isinstance(getattr(law, "covariance", None), Same) or getattr(law, "none", False):
            raise ValueError("'dmid' takes noise of one deviation above 0, or counts (Poisson, PoissonGaussian)")
        level_time(model.process, self.level or float(law.covariance.mean().sqrt()))

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        y, law = live.condition["y"], problem.law
        if not isinstance(law, Poisson | PoissonGaussian):
            return self._mean(live, process, y, float(problem.noise.mean().sqrt()), len(times) - 1)
        low, high = problem.model.value_range or (-1.0, 1.0)
        transform = Anscombe(law, high)
        ends = transform(torch.tensor([law.low, high], dtype=torch.float64))
        stretch = (high - low) / float(ends[1] - ends[0])
        stable = low + stretch * (transform(y) - float(ends[0]))
        clean = self._mean(live, process, stable, stretch, len(times) - 1)
        return transform.inverse((clean - low) / stretch + float(ends[0]))

    def _mean(self, live: Live, process: Process, y: Tensor, level: float, steps: int) -> Tensor:
        """Of the runs from y with noise of a level."""
        times = tail(process, self.level or level, steps)
        total = torch.zeros_like(y)
        for _ in range(self.runs):
            x = process.alpha(times[0]) * y
            for a, b in pairwise(times):
                s, of_x, of_x0 = posterior(process, a, b, self.eta)
                x = of_x * x + of_x0 * live.evaluate(x, a).x0
                if s > 0:
                    x = x + s * live.noise()
            total = total + x / process.alpha(times[-1])
        return total / self.runs


def tail(process: Process, level: float, steps: int) -> list[float]:
    """Even times of the process from a level, `sigma / alpha`, to the clean sample."""
    start = level_time(process, level)
    return [start + (process.t_zero - start) * k / steps for k in range(steps)] + [process.t_zero]
