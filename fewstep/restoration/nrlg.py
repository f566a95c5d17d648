"""NRLG: the likelihood's score where the prior is broad, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.core.process import Process
from fewstep.operators.solve import Inverse
from fewstep.restoration.adam import Adam
from fewstep.restoration.measured import Problem
from fewstep.restoration.moments import At, same
from fewstep.restoration.red_diff import first_guess

METHODS = (
    Method(
        "nrlg",
        paper="Zero-Shot Solving of Imaging Inverse Problems via Noise-Refined Likelihood Guided Diffusion Models",
        claim="the likelihood's score in closed form, no vector product",
        use="NRLG",
        facts={"form": "moments", "measures": ("linear",), "noise": ("none", "gaussian"), "least": 20},
    ),
)

LEAST = 1e-2  # of alpha / sigma, where a variance-preserving process begins: at pure noise the move has no limit


@dataclass(frozen=True)
class NRLG:
    """eps refined by the score of `N(y; A x_t / alpha, v A A^T + S)`, `v = (sigma / alpha)^2`.

    That is `p(y | x_t)` where the prior says nothing: `x0_hat + v A^T (v A A^T + S)^{-1} (y - A x_t / alpha)`. At high
    noise this x0 is far from the data, so that it takes twenty steps to be sound; fresh noise forgets some of it.

    Args:
        scheme: "sampling", the steps of any plan; or "optimising", the paper's other one, an estimate and no draw:
            mu follows Adam down `|eps_refined(alpha mu + sigma eps) - eps|^2`, t falling, the network not
            differentiated. Of data `N(m, C)` it stands still where `A^T (v A A^T + S)^{-1} (y - A mu)` is
            `(v + C)^{-1} (mu - m)`: falling levels lead to the mode. A step asks at eps and at -eps, two evaluations,
            whose errors cancel to first order; of one alone the error is `1 / sqrt(v)` times what is sought.
        rate: of Adam, in "optimising", down to 0 along a cosine.
    """

    jacobian: ClassVar[bool] = False
    scheme: Literal["sampling", "optimising"] = "sampling"
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.scheme not in ("sampling", "optimising"):
            raise ValueError(f"scheme must be 'sampling' or 'optimising', got {self.scheme!r}")
        if not self.rate > 0:
            raise ValueError(f"rate must be above 0, got {self.rate}")

    @property
    def own(self) -> bool:
        """Whether nothing but its own chain runs it."""
        return self.scheme == "optimising"

    @property
    def each(self) -> int:
        """Evaluations of a step."""
        return 2 if self.scheme == "optimising" else 1

    @property
    def walk(self) -> Callable[[Live, Process, Sequence[float], Problem], Tensor] | None:
        """The chain of its own, where the scheme has one."""
        return self._optimised if self.scheme == "optimising" else None

    def _optimised(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        """On a live run of the posterior denoiser, whose eps is the refined one."""
        mu = first_guess(problem, live.condition["y"], live.start())
        adam = Adam(self.rate, len(times) - 1)
        for t in times[:-1]:
            eps, alpha, sigma = live.noise(), process.alpha(t), process.sigma(t)
            x0 = (live.evaluate(alpha * mu + sigma * eps, t).x0 + live.evaluate(alpha * mu - sigma * eps, t).x0) / 2
            # eps_refined - eps = (alpha / sigma) (mu - x0): at alpha = 0 nothing is learned of mu.
            mu = mu - adam.move(alpha / sigma * (mu - x0))
        return mu

    def __call__(self, at: At) -> Tensor:
        alpha = torch.maximum(at.alpha, LEAST * at.sigma)
        v = (at.sigma / alpha) ** 2
        r = at.y - at.operator(at.x / expand(alpha, at.x).to(at.x.dtype))
        c = same(v)
        return c.times(at.operator.adjoint(Inverse(at.operator, c, at.noise)(r)))
