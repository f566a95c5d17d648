"""GibbsDDRM: DDRM's step given the kernel, and the kernel's own given the sample, in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.live import Live
from fewstep.core.methods import Method
from fewstep.core.noise import Source
from fewstep.core.process import Process
from fewstep.operators.covariance import Same
from fewstep.operators.operator import Operator
from fewstep.restoration.ddrm import DDRM, begun
from fewstep.restoration.kernels import Kernels
from fewstep.restoration.langevin import metropolis
from fewstep.restoration.measured import Problem

METHODS = (
    Method(
        "gibbs-ddrm",
        paper="GibbsDDRM: A Partially Collapsed Gibbs Sampler for Blind Inverse Problems (Murata et al., 2023)",
        arxiv="2301.12686",
        claim="an unknown kernel is drawn with the picture, from a first guess; no vector product",
        use="GibbsDDRM",
        facts={"form": "chain", "measures": ("spectrum",), "noise": ("gaussian",), "needs": "blur"},
    ),
)

MOVES = 1 << 25  # the first draw of the kernel's moves
STEP = 0.5  # of a Langevin step, in units of the variance that y and the prior leave to the kernel


@dataclass(frozen=True)
class GibbsDDRM:
    """At each level x0, then `moves` Langevin steps on the taps phi of the kernel, then the step of "ddrm" by `A(phi)`.

    The operator given is a cyclic blur, whose kernel is the first guess and the middle of the prior: taps are normal
    about it, with the deviation `spread`. They move under `p(y | x0, phi) p(phi)`; what an x0 of this level is in error
    by, `r^2 = s^2 v / (s^2 + v)` with `v = (sigma / alpha)^2`, is counted as noise, `r^2 |guess|^2` (the paper counts
    none, and begins to move phi late). Steps are accepted by Metropolis' rule, in the coordinates in which a normal
    posterior is round.

    Args:
        eta, eta_b: of "ddrm". data_std: s, by default the model's or 1.

    A run's report has the taps `(B n, *kernel)` as "kernels".
    """

    spread: float = 0.1
    moves: int = 10
    eta: float = 0.85
    eta_b: float = 1.0
    data_std: float | None = None
    kernels: list[Tensor] = field(default_factory=list, repr=False, compare=False, init=False)

    def __post_init__(self) -> None:
        if not self.spread > 0 or self.moves < 1:
            raise ValueError(f"spread must be above 0 and moves at least 1, got {self.spread} and {self.moves}")
        DDRM(self.eta, self.eta_b)

    def check(self, model: Denoiser, operator: Operator, law: Any) -> None:
        """`ValueError` unless the operator is a cyclic blur and the noise one number above 0."""
        Kernels(operator)
        check_noise("gibbs-ddrm", law)

    def walk(self, live: Live, process: Process, times: Sequence[float], problem: Problem) -> Tensor:
        family, y, noise = Kernels(problem.operator), live.condition["y"], float(problem.noise.mean().sqrt())
        own, std = DDRM(self.eta, self.eta_b), self.data_std or problem.model.facts.data_std or 1.0
        phi = family.guess.to(y).expand(len(y), -1)
        measured, n, seen = family.measured(phi, y, noise)
        z = begun(family.into(live.start()), measured, n, seen, process.alpha(times[0]), process.sigma(times[0]))
        for number, (a, b) in enumerate(pairwise(times)):
            levels = process.alpha(a), process.sigma(a), process.alpha(b), process.sigma(b)
            x0 = live.evaluate(family.back(z), a).x0
            error = std**2 * levels[1] ** 2 / (levels[0] ** 2 * std**2 + levels[1] ** 2)
            variance = noise**2 + error * float(family.guess.square().sum())
            phi = self.drawn(family, phi, x0, y, variance, live.source, MOVES + 2 * number * self.moves)
            measured, n, seen = family.measured(phi, y, noise)
            z = own.moved(z, family.into(x0), measured, n, seen, family.into(live.noise()), levels)
        self.kernels.append(phi.view(-1, *family.taps))
        return family.back(z)

    def reported(self) -> dict[str, Tensor]:
        """What the runs found beside the samples."""
        return {"kernels": torch.cat(self.kernels)}

    def drawn(
        self, family: Kernels, phi: Tensor, x0: Tensor, y: Tensor, variance: float, source: Source, first: int
    ) -> Tensor:
        """phi after its moves under `N(y; A(phi) x0, variance) N(phi; guess, spread^2)`."""
        columns, guess = family.columns(x0), family.guess.to(phi)
        k = phi.shape[1]
        precision = columns.mT @ columns / variance + torch.eye(k, dtype=phi.dtype, device=phi.device) / self.spread**2
        # phi = guess + root w, in which the posterior has unit variance.
        upper = torch.linalg.cholesky(precision).mT
        root = torch.linalg.solve_triangular(upper, torch.eye(k, dtype=phi.dtype, device=phi.device), upper=True)

        def density(w: Tensor) -> Tensor:
            move = (root @ w.unsqueeze(-1)).squeeze(-1)
            made = (columns @ (guess + move).unsqueeze(-1)).squeeze(-1)
            left = (y.flatten(1) - made).double().square().sum(1) / variance
            return -(left + move.double().square().sum(1) / self.spread**2) / 2

        w = metropolis(density, (upper @ (phi - guess).unsqueeze(-1)).squeeze(-1), STEP, self.moves, source, first)
        return guess + (root @ w.unsqueeze(-1)).squeeze(-1)


def check_noise(name: str, law: Any) -> None:
    """`ValueError` unless the noise is Gaussian, of one deviation above 0."""
    own = getattr(law, "covariance", None)
    if not isinstance(own, Same) or not math.isfinite(float(own.mean())) or float(own.mean()) == 0:
        raise ValueError(f"{name!r} weighs a kernel by the noise: it takes Gaussian noise of one deviation above 0")
