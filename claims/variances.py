"""The runs that claims about learned variances share: a perceptron on the mixture, with and without the hybrid loss."""

from __future__ import annotations

import functools

from claims.objectives import PROCESS, points
from claims.trained import MLP, NetworkDenoiser, Objective, fit, fresh
from fewstep.denoisers.learned_variance import LearnedVariance
from fewstep.training.learned_variance import VariationalBound

STEPS, BATCH, CHAIN = 1000, 128, 20
ABOUT = (
    f"perceptron for eps, {STEPS} steps of {BATCH} points of the 8-component mixture, bound of a chain of {CHAIN}, vp"
)


@functools.cache
def learned(seed: int) -> LearnedVariance:
    """Trained with `L_simple + 0.001 L_vlb`."""
    model = LearnedVariance(fresh(MLP, seed, out=2), PROCESS, "eps", (2,))
    objective = Objective(model, terms=[(0.001, VariationalBound(CHAIN))])
    return fit(model, points(), steps=STEPS, batch=BATCH, lr=2e-3, objective=objective, seed=seed)  # type: ignore[return-value]


@functools.cache
def plain(seed: int) -> NetworkDenoiser:
    """The same without the bound, and without the variance."""
    model = NetworkDenoiser(fresh(MLP, seed), PROCESS, "eps", (2,))
    return fit(model, points(), steps=STEPS, batch=BATCH, lr=2e-3, seed=seed)
