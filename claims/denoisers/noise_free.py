"""Claims of what is answered where the noise level is not known."""

from __future__ import annotations

import torch

from claims.common import F64, VP, Claim, Noise, Outcome, tolerance
from claims.guidance.learned import LEVELS, levels_of, six
from fewstep.denoisers.noise_free import NoiseFree


def _exact_null(seed: int) -> Outcome:
    """The score without a noise level against automatic differentiation of the law over all levels."""
    mixture, levels = six(3), levels_of(VP())
    x = Noise(seed).normal(0, (64, 3), "cpu", F64).requires_grad_(True)
    density = torch.stack([mixture.log_likelihood(x, t) for t in levels], 1).logsumexp(1)
    (score,) = torch.autograd.grad(density.sum(), x)
    off = (NoiseFree(mixture, levels)(x.detach(), levels[0]).value - score).norm() / score.norm()
    return tolerance(float(off), 1e-10, f"{LEVELS} levels, mixture in 3 dimensions", "relative error")


CLAIMS = (Claim("noise-free", "its score is the gradient of the log-density over all levels", _exact_null),)
