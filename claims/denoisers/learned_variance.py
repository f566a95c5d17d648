"""Claims of fewstep/denoisers/learned_variance.py."""

from __future__ import annotations

from collections.abc import Callable

import torch

from claims.common import F64, VP, Claim, Denoiser, Outcome, arms, tolerance
from claims.objectives import PROCESS, few_step_distance
from claims.problems import mixture
from claims.variances import ABOUT, learned, plain
from fewstep.denoisers.learned_variance import reverse_step


def _bounds(seed: int) -> Outcome:
    process, a, worst = VP(), torch.linspace(0.1, 1, 91, dtype=F64), 0.0
    for stride in (0.01, 0.09):
        made, bar_a, bar_b = reverse_step(process, a, a - stride), process.alpha(a) ** 2, process.alpha(a - stride) ** 2
        beta = 1 - bar_a / bar_b
        for ours, theirs in (
            ((made.small + made.span).exp(), beta),
            (made.small.exp(), (1 - bar_b) / (1 - bar_a) * beta),
            (made.x0, bar_b.sqrt() * beta / (1 - bar_a)),
        ):
            worst = max(worst, float((ours / theirs - 1).abs().max()))
    return tolerance(worst, 1e-10, "beta, beta-tilde and mean, vp, two strides", "relative difference")


def _mean(seed: int) -> Outcome:
    def figure(trained: Callable[[int], Denoiser], s: int) -> float:
        return few_step_distance(trained(s), mixture(PROCESS), s, 10)

    about = f"{ABOUT}; dpmpp-2m, 10 evaluations, 4096 samples"
    against, unit = "a network of the mean alone", "sliced Wasserstein distance"
    return arms(seed, figure, learned, plain, against, about, unit=unit)


CLAIMS = (
    Claim("learned-variance", "its bounds are the paper's under a variance-preserving process", _bounds),
    Claim("learned-variance", "samples better with an ODE solver than a network of the mean alone", _mean, quick=False),
)
