"""Claims of fewstep/training/fokker_planck.py."""

from __future__ import annotations

import copy
import functools

import torch

from claims.common import EDM, F64, VE, Answers, Claim, Cosine, Flow, Outcome, arms, compared, experiment, tolerance
from claims.objectives import PROCESS, points
from claims.problems import mixture, smooth
from claims.trained import MLP, NetworkDenoiser, Objective, fit, fresh
from fewstep.processes.vp import SubVP
from fewstep.training.fokker_planck import FokkerPlanck, Gap, ode_sde_gap, residual

FIRST, THEN, BATCH = 800, 150, 64
ABOUT = (
    f"perceptron for eps, {FIRST} plain steps of {BATCH} points of the 8-component mixture, then {THEN} with the term,"
    " exact divergence, vp; 2000 samples, 100 steps of dpmpp-3m and of dpmpp-2m-sde"
)


@functools.cache
def _first(seed: int) -> NetworkDenoiser:
    model = NetworkDenoiser(fresh(MLP, seed, width=48, depth=2), PROCESS, "eps", (2,))
    return fit(model, points(), steps=FIRST, batch=BATCH, lr=2e-3, seed=seed)


@functools.cache
def _gap(weight: float, seed: int) -> Gap:
    model = copy.deepcopy(_first(seed))
    objective = Objective(model, terms=[(weight, FokkerPlanck(None))])
    trained = fit(model, points(), steps=THEN, batch=BATCH, lr=1e-3, objective=objective, seed=seed + 50)
    return ode_sde_gap(trained, mixture(PROCESS).sample(2000, seed + 1).float(), seed=seed)


@experiment
def _closes(seed: int, weight: float, what: str) -> Outcome:
    """One of the distances of `Gap`, trained with the term and without."""
    about, unit = f"weight {weight:g}; {ABOUT}", "sliced Wasserstein distance"
    return arms(seed, lambda w, s: getattr(_gap(w, s), what), weight, 0.0, "weight 0", about, unit=unit)


def _exact(seed: int) -> Outcome:
    worst = 0.0
    for process in (PROCESS, SubVP(), Cosine(), Flow(), EDM(), VE()):
        t = process.time(torch.linspace(3, -3, 64, dtype=F64))
        normal = torch.randn(64, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)
        x = normal * (process.alpha(t) ** 2 + process.sigma(t) ** 2).sqrt()[:, None]
        worst = max(worst, float(residual(smooth(process), x, t).detach().abs().max()))
    about = "smooth 5-component mixture, six processes, log(alpha / sigma) from -3 to 3"
    return tolerance(worst, 1e-10, about, "largest residual")


def _finds(seed: int) -> Outcome:
    exact = smooth(PROCESS)
    scaled = Answers(lambda x, t: 0.9 * exact(x, t).eps, PROCESS, (2,), "eps")  # the score of no diffusion
    gaps = [ode_sde_gap(model, n=1000, steps=50, seed=seed).between for model in (exact, scaled)]
    about = "exact model, smooth 5-component mixture, vp, 1000 samples, 50 steps"
    return compared(gaps, "the exact eps times 0.9", about, unit="sliced Wasserstein distance between ODE and SDE")


CLAIMS = (
    Claim("fokker-planck", "vanishes on the exact score of every process", _exact),
    *(Claim("fokker-planck", f"at weight {weight:g} brings {sentence}", _closes(weight, what), quick=False)
      for weight in (0.1, 1.0)
      for sentence, what in (
          ("the samples of ODE and SDE together", "between"),
          ("the ODE's samples nearer to the truth", "ode"),
          ("the SDE's samples nearer to the truth", "sde"),
      )),
    Claim("ode-sde-gap", "tells an exact score from one that no diffusion has", _finds),
)  # fmt: skip
