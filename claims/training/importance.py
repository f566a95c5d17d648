"""Claims of fewstep/training/importance.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome, over_seeds
from claims.objectives import ABOUT_PLANE, PROCESS, SEEDS, plane, points
from fewstep.training.importance import ImportanceLevels
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.objective import Objective
from fewstep.training.weightings import weighting

BATCHES, BATCH, WARM = 200, 64, 60


def _scatter(seed: int, importance: bool) -> float:
    """Variance of a batch's gradient of the bound, summed over all weights."""
    model, generator = plane("constant", seed), torch.Generator().manual_seed(seed)
    objective = Objective(model, weighting("elbo-weighting"))
    base = NoiseLevels(PROCESS)
    levels, data, gradients = ImportanceLevels(base), points(), []
    for number in range(WARM + BATCHES):
        drawn = levels if importance or number < WARM else base
        x0 = data[torch.randint(len(data), (BATCH,), generator=generator)]
        eps = torch.randn(x0.shape, generator=generator)
        t = drawn.quantile(torch.rand(BATCH, generator=generator, dtype=torch.float64))
        losses = objective(x0, eps, t, {})
        weight = levels.weight(t) if drawn is levels else torch.ones_like(t)
        if number < WARM:
            levels.update(t, losses)
            continue
        found = torch.autograd.grad((losses * weight.to(losses)).mean(), list(model.network.parameters()))
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    return float(torch.stack(gradients).double().var(0).sum())


def _variance(seed: int) -> Outcome:
    return over_seeds(
        lambda s: (_scatter(s, True), _scatter(s, False)),
        SEEDS,
        "times drawn uniformly",
        f"the variational bound; {ABOUT_PLANE} before; {BATCHES} batches of {BATCH}, 64 bins",
        unit="total variance of the gradient",
    )


def _unbiased(seed: int) -> Outcome:
    """On losses that grow over five decades."""
    levels, base = ImportanceLevels(NoiseLevels(PROCESS), bins=32), NoiseLevels(PROCESS)
    shares = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    levels.update(base.quantile(shares), base.quantile(shares) ** 5)
    t = levels.quantile(shares)
    errors = [
        float(((levels.weight(t) * f(t)).mean() / f(base.quantile(shares)).mean() - 1).abs())
        for f in (torch.sin, torch.exp, lambda t: t**2)
    ]
    return Outcome(
        max(errors), 1e-3, "tolerance", "means of sin t, e^t and t^2 by 100000 even shares", unit="relative difference"
    )


CLAIMS = (
    Claim("importance", "the bound's gradient varies less than with uniform times", _variance, quick=False),
    Claim("importance", "keeps the mean of any function of the noise level", _unbiased),
)
