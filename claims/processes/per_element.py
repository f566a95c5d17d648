"""Claims of fewstep/processes/per_element.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from claims.common import ENDPOINT, F64, VP, Answers, Claim, Noise, Outcome, gap, plan, tolerance
from claims.problems import smooth
from fewstep.processes.per_element import PerElement
from fewstep.sampling.build import solver_names


def _parity(seed: int) -> Outcome:
    base, process = smooth(VP()), PerElement((VP(), VP()), (0, 1), (2,))
    within = Answers(lambda x, t: base(x, t).x0, process, base.shape)
    noise, worst = Noise(seed).normal(0, (8, 2), "cpu", F64), 0.0
    for name in solver_names():
        ours = plan(process, name, 5)(within, noise, seed=seed, dtype=F64)
        theirs = plan(VP(), name, 5)(base, noise, seed=seed, dtype=F64)
        worst = max(worst, float((ours - theirs).abs().max()))
    about = f"{len(solver_names())} solvers, 5 steps, 2 equal bands, smooth 5-component mixture, vp"
    return tolerance(worst, 1e-6, about, "largest difference")


def _converges(seed: int) -> Outcome:
    """Elements that do not see each other: each is a scalar run of its own process, so its exact end is known."""
    process = PerElement((VP(), VP(beta_max=12.0), VP(beta_max=25.0)), (0, 1, 2), (3,))
    variances = torch.tensor([0.01, 0.25, 4.0], dtype=F64)

    def answer(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha * variances / (alpha**2 * variances + sigma**2) * x

    noise = Noise(seed).normal(0, (64, 3), "cpu", F64)
    first = torch.tensor(process.t_max, dtype=F64)
    alpha, sigma = process.alpha(first), process.sigma(first)
    exact = noise * sigma * (variances / (alpha**2 * variances + sigma**2)).sqrt()
    found = plan(process, "dpmpp-3m", 200, "log-snr")(Answers(answer, process, (3,)), noise, dtype=F64)
    about = "dpmpp-3m, 200 evaluations, three schedules, Gaussian data of variances 0.01, 0.25 and 4, 64 noises"
    return tolerance(gap(found, exact) if math.isfinite(float(found.sum())) else 1e9, 1e-3, about, ENDPOINT)


CLAIMS = (
    Claim("per-element", "equal bands give every solver's scalar samples", _parity),
    Claim("per-element", "bands with schedules of their own reach the exact end points of their own ODEs", _converges),
)
