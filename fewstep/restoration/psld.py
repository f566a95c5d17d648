"""PSLD: the step of DPS through a decoder, and one towards latents that encode what they decode to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.process import Process
from fewstep.operators.operator import LinearOperator, Operator
from fewstep.restoration.dps import descending, residual_weights
from fewstep.restoration.gradients import length
from fewstep.restoration.measured import Problem, brought

METHODS = (
    Method(
        "psld",
        paper="Solving Linear Inverse Problems Provably via Posterior Sampling with Latent Diffusion Models"
        " (Rout et al., 2023)",
        arxiv="2307.00619",
        claim="dps through a decoder, glued to latents that come back from their picture; one vector product",
        use="PSLD",
        facts={
            "form": "chain",
            "measures": ("linear",),
            "noise": ("none", "gaussian", "poisson"),
            "states": ("latents",),
        },
    ),
)


@dataclass(frozen=True)
class PSLD:
    """`z <- (ancestral step) - grad (zeta |y - A D(z0)| + gamma |z0 - E(x)|)`, z0 the model's and D, E the autoencoder
    (algorithm 2).

    x is D(z0) brought to its measurement, `A^+ y + (I - A^+ A) D(z0)` without noise and the proximal step with it (the
    paper has `A^T y + (I - A^T A) D(z0)`, which is the same where A keeps lengths). Many latents decode to pictures
    that fit y; the second term asks for one that comes back when its picture is encoded. Both are norms of each
    sample alone, as in "dps", which gamma = 0 is.
    """

    passes: ClassVar[int] = 3
    zeta: float = 1.0
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not self.zeta >= 0 or not self.gamma >= 0:
            raise ValueError(f"zeta and gamma must be at least 0, got {self.zeta} and {self.gamma}")

    def check(self, model: Denoiser, operator: Operator, law: Any) -> None:
        """`ValueError` unless the operator is linear."""
        if not isinstance(operator, LinearOperator):
            raise ValueError(f"'psld' takes a linear operator, and {operator} is none: resample and flowdps take any")

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        y, model, a = live.condition["y"], problem.model, problem.of_data
        assert isinstance(a, LinearOperator)
        weights, ratio = residual_weights(problem, y), problem.ratio(y)

        def value(z0: Tensor) -> Tensor:
            data = model.decode(z0)
            off = self.zeta * length((y - a(data)) * weights)
            if self.gamma == 0:
                return off
            return off + self.gamma * length(z0 - model.encode(brought(a, data, y, ratio)))

        return descending(live, process, times, value if self.zeta or self.gamma else None)
