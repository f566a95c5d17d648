"""Claims of fewstep/training/fokker_planck.py."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, over_seeds
from claims.objectives import PROCESS, SEEDS, fresh, points
from claims.problems import mixture, smooth
from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.cosine import Cosine
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import SubVP
from fewstep.training.fit import fit
from fewstep.training.fokker_planck import FokkerPlanck, Gap, ode_sde_gap, residual
from fewstep.training.objective import Objective

FIRST, THEN, BATCH = 800, 150, 64
ABOUT = (
    f"perceptron for eps, {FIRST} plain steps of {BATCH} points of the 8-component mixture, then {THEN} with the term,"
    " exact divergence, vp; 2000 samples, 100 steps of dpmpp-3m and of dpmpp-2m-sde"
)


@functools.cache
def _first(seed: int) -> NetworkDenoiser:
    model = NetworkDenoiser(fresh(lambda: MLP(width=48, depth=2), seed), PROCESS, "eps", (2,))
    return fit(model, points(), steps=FIRST, batch=BATCH, lr=2e-3, seed=seed)


@functools.cache
def _gap(weight: float, seed: int) -> Gap:
    model = copy.deepcopy(_first(seed))
    objective = Objective(model, terms=[(weight, FokkerPlanck(None))])
    trained = fit(model, points(), steps=THEN, batch=BATCH, lr=1e-3, objective=objective, seed=seed + 50)
    return ode_sde_gap(trained, mixture(PROCESS).sample(2000, seed + 1).float(), seed=seed)


def _closes(weight: float, what: str) -> Outcome:
    def run(seed: int) -> tuple[float, float]:
        ours, theirs = getattr(_gap(weight, seed), what), getattr(_gap(0.0, seed), what)
        assert ours is not None and theirs is not None
        return ours, theirs

    return over_seeds(run, SEEDS, "weight 0", f"weight {weight:g}; {ABOUT}", unit="sliced Wasserstein distance")


def _exact(seed: int) -> Outcome:
    worst = 0.0
    for process in (PROCESS, SubVP(), Cosine(), Flow(), EDM(), VE()):
        t = process.time(torch.linspace(3, -3, 64, dtype=torch.float64))
        normal = torch.randn(64, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x = normal * (process.alpha(t) ** 2 + process.sigma(t) ** 2).sqrt()[:, None]
        worst = max(worst, float(residual(smooth(process), x, t).detach().abs().max()))
    return Outcome(
        worst, 1e-10, "tolerance", "smooth 5-component mixture, six processes, log(alpha / sigma) from -3 to 3",
        unit="largest residual",
    )  # fmt: skip


class _Scaled(Denoiser):
    """The exact eps times 0.9: the score of no diffusion."""

    def __init__(self) -> None:
        super().__init__()
        self.exact, self.process, self.shape = smooth(PROCESS), PROCESS, (2,)

    def forward(self, x: Tensor, t: Tensor, **condition: object) -> Prediction:
        return Prediction(0.9 * self.exact(x, t).eps, "eps", x, t, self.process)


def _finds(seed: int) -> Outcome:
    ours, theirs = (ode_sde_gap(model, n=1000, steps=50, seed=seed).between for model in (smooth(PROCESS), _Scaled()))
    return Outcome(
        ours, theirs, "the exact eps times 0.9", "exact model, smooth 5-component mixture, vp, 1000 samples, 50 steps",
        unit="sliced Wasserstein distance between ODE and SDE",
    )  # fmt: skip


CLAIMS = (
    Claim("fokker-planck", "vanishes on the exact score of every process", _exact),
    *(
        Claim(
            "fokker-planck",
            f"at weight {weight:g} {sentence}",
            lambda s, w=weight, what=what: _closes(w, what),
            quick=False,
        )
        for weight in (0.1, 1.0)
        for sentence, what in (
            ("brings the samples of ODE and SDE together", "between"),
            ("brings the ODE's samples nearer to the truth", "ode"),
            ("brings the SDE's samples nearer to the truth", "sde"),
        )
    ),
    Claim("ode-sde-gap", "tells an exact score from one that no diffusion has", _finds),
)
