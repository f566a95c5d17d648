"""Claims of fewstep/denoisers/learned_variance.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome, over_seeds
from claims.objectives import PROCESS, SEEDS, few_step_distance
from claims.problems import mixture
from claims.variances import ABOUT, learned, plain
from fewstep.denoisers.learned_variance import reverse_step
from fewstep.processes.vp import VP


def _bounds(seed: int) -> Outcome:
    process, a = VP(), torch.linspace(0.1, 1, 91, dtype=torch.float64)
    worst = 0.0
    for stride in (0.01, 0.09):
        made, bar_a, bar_b = reverse_step(process, a, a - stride), process.alpha(a) ** 2, process.alpha(a - stride) ** 2
        beta = 1 - bar_a / bar_b
        for ours, theirs in (
            ((made.small + made.span).exp(), beta),
            (made.small.exp(), (1 - bar_b) / (1 - bar_a) * beta),
            (made.x0, bar_b.sqrt() * beta / (1 - bar_a)),
        ):
            worst = max(worst, float((ours / theirs - 1).abs().max()))
    return Outcome(worst, 1e-10, "tolerance", "beta, beta-tilde and mean, vp, two strides", unit="relative difference")


def _mean(seed: int) -> Outcome:
    truth = mixture(PROCESS)
    return over_seeds(
        lambda s: (few_step_distance(learned(s), truth, s, 10), few_step_distance(plain(s), truth, s, 10)),
        SEEDS,
        "a network of the mean alone",
        f"{ABOUT}; dpmpp-2m, 10 evaluations, 4096 samples",
        unit="sliced Wasserstein distance",
    )


CLAIMS = (
    Claim("learned-variance", "its bounds are the paper's under a variance-preserving process", _bounds),
    Claim("learned-variance", "samples better with an ODE solver than a network of the mean alone", _mean, quick=False),
)
