"""NRLG: the likelihood's score where the prior is broad, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.prediction import expand
from fewstep.operators.solve import Inverse
from fewstep.restoration.moments import At, same

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
    """

    jacobian: ClassVar[bool] = False

    def __call__(self, at: At) -> Tensor:
        alpha = torch.maximum(at.alpha, LEAST * at.sigma)
        v = (at.sigma / alpha) ** 2
        r = at.y - at.operator(at.x / expand(alpha, at.x).to(at.x.dtype))
        c = same(v)
        return c.times(at.operator.adjoint(Inverse(at.operator, c, at.noise)(r)))
