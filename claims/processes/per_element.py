"""Claims of fewstep/processes/per_element.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from claims.claim import Claim, Outcome
from claims.problems import F64, smooth
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.processes.per_element import PerElement
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan, solver_names


class _Within(Denoiser):
    """A denoiser of a scalar process as one of a process whose bands are all that process."""

    def __init__(self, base: Denoiser, process: Process) -> None:
        super().__init__()
        self.base, self.process, self.shape = base, process, base.shape

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Prediction:
        found = self.base(x, t)
        return Prediction(found.value, found.kind, x, t, self.process)


def _parity(seed: int) -> Outcome:
    base = smooth(VP())
    process = PerElement((VP(), VP()), (0, 1), (2,))
    noise, worst = Noise(seed).normal(0, (8, 2), "cpu", F64), 0.0
    for name in solver_names():
        ours = plan(process, name, 5)(_Within(base, process), noise, seed=seed, dtype=F64)
        theirs = plan(VP(), name, 5)(base, noise, seed=seed, dtype=F64)
        worst = max(worst, float((ours - theirs).abs().max()))
    return Outcome(
        worst,
        1e-6,
        "tolerance",
        f"{len(solver_names())} solvers, 5 steps, 2 equal bands, smooth 5-component mixture, vp",
        unit="largest difference",
    )


def _converges(seed: int) -> Outcome:
    """Elements that do not see each other: each is a scalar run of its own process, so its exact end is known."""
    bands = (VP(), VP(beta_max=12.0), VP(beta_max=25.0))
    process = PerElement(bands, (0, 1, 2), (3,))
    variances = torch.tensor([0.01, 0.25, 4.0], dtype=F64)

    class Gaussian(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.process, self.shape = process, (3,)

        def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Prediction:
            alpha, sigma = process.alpha(t), process.sigma(t)
            return Prediction(alpha * variances / (alpha**2 * variances + sigma**2) * x, "x0", x, t, process)

    noise = Noise(seed).normal(0, (64, 3), "cpu", F64)
    first = torch.tensor(process.t_max, dtype=F64)
    alpha, sigma = process.alpha(first), process.sigma(first)
    exact = noise * sigma * (variances / (alpha**2 * variances + sigma**2)).sqrt()
    found = plan(process, "dpmpp-3m", 200, "log-snr")(Gaussian(), noise, dtype=F64)
    return Outcome(
        float((found - exact).norm() / exact.norm()) if math.isfinite(float(found.sum())) else 1e9,
        1e-3,
        "tolerance",
        "dpmpp-3m, 200 evaluations, three schedules, Gaussian data of variances 0.01, 0.25 and 4, 64 noises",
        unit="relative end point error",
    )


CLAIMS = (
    Claim("per-element", "equal bands give every solver's scalar samples", _parity),
    Claim("per-element", "bands with schedules of their own reach the exact end points of their own ODEs", _converges),
)
