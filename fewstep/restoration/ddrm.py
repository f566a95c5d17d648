"""DDRM: a variational posterior in the coordinates of the operator's singular vectors."""

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
from fewstep.operators.operator import COLUMNS, LinearOperator, Operator
from fewstep.restoration.fits import check_linear
from fewstep.restoration.measured import Problem

METHODS = (
    Method(
        "ddrm",
        paper="Denoising Diffusion Restoration Models (Kawar et al., 2022)",
        arxiv="2201.11793",
        claim="three cases for each singular value; no vector product",
        use="DDRM",
        facts={"form": "chain", "measures": ("spectrum",), "noise": ("none", "gaussian")},
    ),
)


@dataclass(frozen=True)
class DDRM:
    """With z = V^T x / alpha, `y_i = (U^T y)_i / s_i`, and the deviations `t = sigma / alpha` and `n = noise / s_i`:

        unseen:     z_b = x0 + sqrt(1 - eta^2) t_b (z_a - x0) / t_a + eta t_b e
        t_b < n:    z_b = x0 + sqrt(1 - eta^2) t_b (y - x0) / n     + eta t_b e
        else:       z_b = (1 - eta_b) x0 + eta_b y + sqrt(t_b^2 - n^2 eta_b^2) e

    from `N(y, t^2 - n^2)` where the first level has more noise than the measurement (equations 7 and 8). It is
    computed on x, which stays finite at alpha = 0. eta, eta_b: 0 to 1.
    """

    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self) -> None:
        for name in ("eta", "eta_b"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")

    def check(self, model: Denoiser, operator: Operator, law: Any) -> None:
        """`ValueError` without a spectrum, or for noise that is not the same everywhere."""
        check_spectrum("ddrm", operator, law)

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        spectrum, std = problem.operator.spectrum(), float(problem.noise.mean().sqrt())
        y = spectrum.of(live.condition["y"])
        seen, inverse = spectrum.seen().to(y.device), spectrum.inverse().to(y)
        measured, n = y * inverse, std * inverse  # (B, d) and (d,)
        z = spectrum.into(live.start())  # U^T x: alpha times the z of the equations
        z = begun(z, measured, n, seen, process.alpha(times[0]), process.sigma(times[0]))
        for a, b in pairwise(times):
            x0 = spectrum.into(live.evaluate(spectrum.back(z), a).x0)
            e = spectrum.into(live.noise())
            levels = process.alpha(a), process.sigma(a), process.alpha(b), process.sigma(b)
            z = self.moved(z, x0, measured, n, seen, e, levels)
        return spectrum.back(z)

    def moved(
        self, z: Tensor, x0: Tensor, measured: Tensor, n: Tensor, seen: Tensor, e: Tensor,
        levels: tuple[float, float, float, float],
    ) -> Tensor:  # fmt: skip
        """The step between two levels, alpha and sigma of each, in any orthonormal coordinates, complex ones too."""
        before, sigma_a, alpha, sigma = levels
        keep = (1 - self.eta**2) ** 0.5 * sigma
        unseen = alpha * x0 + keep / sigma_a * (z - before * x0) + self.eta * sigma * e
        towards = torch.where(n > 0, 1 / torch.where(n > 0, n, 1.0), 0.0)
        weak = alpha * x0 + keep * towards * (measured - x0) + self.eta * sigma * e
        spread = (sigma**2 - (alpha * n * self.eta_b) ** 2).clamp_min(0).sqrt()
        strong = alpha * ((1 - self.eta_b) * x0 + self.eta_b * measured) + spread * e
        return torch.where(seen, torch.where(alpha * n > sigma, weak, strong), unseen)


def begun(z: Tensor, measured: Tensor, n: Tensor, seen: Tensor, alpha: float, sigma: float) -> Tensor:
    """The first state, of noise z: around the measurement where the level has more noise than that."""
    room = sigma**2 - (alpha * n) ** 2
    first = alpha * measured + (room.clamp_min(0) / sigma**2).sqrt() * z
    return torch.where(seen & (room >= 0), first, z)


def check_spectrum(name: str, operator: Operator, law: Any) -> None:
    """`ValueError` unless the operator's singular values are known and the noise is one number."""
    check_linear(name, operator)
    assert isinstance(operator, LinearOperator)
    if operator.spectrum() is None:
        size = operator.matrix_size()
        raise ValueError(
            f"{name!r} needs the singular values of {operator}, which are known in closed form for masks, cyclic blurs"
            f" and products along axes, and else up to {COLUMNS} columns: it has {size}. calibrated or pigdm do without"
        )
    if not isinstance(getattr(law, "covariance", None), Same):
        raise ValueError(f"{name!r} takes noise of one deviation: calibrated, pigdm and mmps take others")
