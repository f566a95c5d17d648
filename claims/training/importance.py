"""Claims of fewstep/training/importance.py."""

from __future__ import annotations

import torch

from claims.common import F64, Claim, Outcome, arms, tolerance
from claims.objectives import ABOUT_PLANE, PROCESS, plane, points
from claims.trained import NoiseLevels, Objective
from fewstep.training.importance import ImportanceLevels
from fewstep.training.weightings import weighting

BATCHES, BATCH, WARM = 200, 64, 60


def _scatter(importance: bool, seed: int) -> float:
    """Variance of a batch's gradient of the bound, summed over all weights."""
    model, generator = plane("constant", seed), torch.Generator().manual_seed(seed)
    objective, base = Objective(model, weighting("elbo-weighting")), NoiseLevels(PROCESS)
    levels, data, gradients = ImportanceLevels(base), points(), []
    for number in range(WARM + BATCHES):
        drawn = levels if importance or number < WARM else base
        x0 = data[torch.randint(len(data), (BATCH,), generator=generator)]
        eps = torch.randn(x0.shape, generator=generator)
        t = drawn.quantile(torch.rand(BATCH, generator=generator, dtype=F64))
        losses = objective(x0, eps, t, {})
        weight = levels.weight(t) if drawn is levels else torch.ones_like(t)
        if number < WARM:
            levels.update(t, losses)
            continue
        found = torch.autograd.grad((losses * weight.to(losses)).mean(), list(model.network.parameters()))
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    return float(torch.stack(gradients).double().var(0).sum())


def _variance(seed: int) -> Outcome:
    about = f"the variational bound; {ABOUT_PLANE} before; {BATCHES} batches of {BATCH}, 64 bins"
    return arms(seed, _scatter, True, False, "times drawn uniformly", about, unit="total variance of the gradient")


def _unbiased(seed: int) -> Outcome:
    """On losses that grow over five decades."""
    levels, base = ImportanceLevels(NoiseLevels(PROCESS), bins=32), NoiseLevels(PROCESS)
    even = base.quantile((torch.arange(100_000, dtype=F64) + 0.5) / 100_000)
    levels.update(even, even**5)
    t = levels.quantile((torch.arange(100_000, dtype=F64) + 0.5) / 100_000)
    functions = (torch.sin, torch.exp, lambda t: t**2)
    worst = max(float(((levels.weight(t) * f(t)).mean() / f(even).mean() - 1).abs()) for f in functions)
    return tolerance(worst, 1e-3, "means of sin t, e^t and t^2 by 100000 even shares", "relative difference")


CLAIMS = (
    Claim("importance", "the bound's gradient varies less than with uniform times", _variance, quick=False),
    Claim("importance", "keeps the mean of any function of the noise level", _unbiased),
)
