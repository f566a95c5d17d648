"""Equations that the data obey, as a term of the loss: residuals of the clean estimate, weighted by its uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.prediction import coefficients, expand, scales
from fewstep.training.objective import Step

METHODS = (
    Method(
        "constraint",
        kind="term",
        paper="Physics-Informed Diffusion Models (Bastek et al., 2024)",
        arxiv="2403.14404",
        claim="samples obey the data's equations better, at no cost in sampling",
        use="Constraint",
    ),
)

# (the clean estimate (B, *shape), the conditions) to residuals (B, ...), zero where the equations hold.
Residual = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


def x0_error(step: Step) -> Tensor:
    """The estimate of x0 less x0, (B, *shape), from the error of the network's own output.

    At a known state `alpha dx0 + sigma deps = 0`, so an output `a x0 + b eps` is off by `(a - b alpha / sigma) dx0`,
    EDM's F by `dx0 / c_out`. Infinite for eps, velocity and score where alpha = 0: they do not determine x0 there.
    """
    denoiser = step.denoiser
    alpha, sigma, dalpha, dsigma = scales(denoiser.process, step.t)
    if denoiser.precondition == "edm":
        factor = sigma * denoiser.data_std / (sigma**2 + (alpha * denoiser.data_std) ** 2).sqrt()
    else:
        a, b = coefficients(denoiser.predicts, alpha, sigma, dalpha, dsigma)
        factor = sigma / (a * sigma - b * alpha)
    return expand(factor, step.output) * (step.output - step.target)


class Constraint:
    """A `Term`: `1/2 mean(R(x0_hat)^2) / (r^2 + floor^2)`, r the spread of x0 given x.

    The residual is treated as normal with the estimate's own uncertainty (the paper's virtual likelihood):
    where much noise is left it counts little, near the data it counts fully. `r^2 = sigma^2 / (alpha^2 + sigma^2)` is
    the posterior variance of data of variance one, the paper's for any process; `floor` keeps the weight finite near
    the data.

    A linear equation holds for the exact `E[x0 | x]` at every noise level, so there the term is zero at the optimum. A
    curved one holds for the data alone, and for the exact mean up to about its curvature times r^2: a bias which the
    factor of the term and this weight keep small.

    Raises ValueError for a floor that is not positive, a residual that is not a function, and residuals without a row
    for each sample.
    """

    def __init__(self, residual: Residual, floor: float = 0.05) -> None:
        if not floor > 0:
            raise ValueError(f"floor must be positive, got {floor}")
        if not callable(residual):
            raise ValueError(f"the residual is a function, which a recipe has from Python alone, got {residual!r}")
        self.residual, self.floor = residual, floor

    def __call__(self, step: Step) -> Tensor:
        found = self.residual(step.x0 + x0_error(step), step.condition)
        if found.ndim < 1 or len(found) != len(step.x0):
            raise ValueError(f"residuals must be ({len(step.x0)}, ...), got shape {tuple(found.shape)}")
        spread2 = torch.sigmoid(-2 * step.denoiser.process.log_snr(step.t))
        squared = found.square().reshape(len(found), -1).mean(1)
        return 0.5 * squared / (spread2 + self.floor**2).to(squared)
