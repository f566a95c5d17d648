"""Claims of fewstep/processes/iadb.py."""

from __future__ import annotations

import functools

import torch

from claims.between import DATA, OTHER, between, ends
from claims.claim import Claim, Outcome, over_seeds
from claims.problems import F64
from fewstep.denoisers.interpolant import drawn_from
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.metrics.endpoint import endpoint_error
from fewstep.networks.mlp import MLP
from fewstep.processes.iadb import AlphaBlending
from fewstep.sampling.build import plan
from fewstep.training.fit import fit

NFE = 10


def _solver(seed: int, ours: str) -> Outcome:
    exact, (x1, wanted) = between(), ends(seed)
    errors = [
        endpoint_error(plan(exact.process, name, NFE, "uniform")(exact, x1, dtype=F64), wanted).value
        for name in (ours, "ddim")
    ]
    return Outcome(
        errors[0],
        errors[1],
        f"the paper's step (ddim), {NFE} evaluations",
        f"{ours}, {NFE} even steps, between two mixtures in the plane, {len(x1)} samples",
        unit="relative end point error",
    )


def _targets(seed: int) -> Outcome:
    """The same network, data and budget; the error of E[x1 - x0 | x] relative to its own variance."""

    def run(s: int) -> tuple[float, float]:
        exact, (x0, x1) = between(), between().sample_pairs(4096, s + 50)
        t = torch.linspace(0.02, 0.98, 4096, dtype=F64)
        x = (1 - t).unsqueeze(1) * x0 + t.unsqueeze(1) * x1
        wanted, errors = exact(x, t).to("flow"), []
        for predicts in ("flow", "x0"):
            torch.manual_seed(s)
            model = NetworkDenoiser(MLP(width=48, depth=2), AlphaBlending(), predicts, (2,), value_range=None)
            coupling = drawn_from(OTHER.sample(4096, s + 1).float())
            made = fit(model, DATA.sample(4096, s).float(), steps=1000, lr=2e-3, coupling=coupling, seed=s)
            with torch.no_grad():
                found = made(x.float(), t).to("flow").double()
            errors.append(float((found - wanted).square().mean() / wanted.var(0).mean()))
        return errors[0], errors[1]

    return over_seeds(
        run,
        range(seed, seed + 3),
        "predicting x0",
        "predicting the difference, mlp of width 48, 1000 steps of 256 pairs, t from 0.02 to 0.98",
        unit="squared error of the difference, relative to its variance",
    )


CLAIMS = (
    Claim(
        "iadb",
        "between two densities vab-2 is nearer to the ODE's end than its own step",
        functools.partial(_solver, ours="vab-2"),
    ),
    Claim(
        "iadb",
        "between two densities dpmpp-2m is nearer to the ODE's end than its own step",
        functools.partial(_solver, ours="dpmpp-2m"),
    ),
    Claim("iadb", "learns the difference better by predicting it than by predicting x0", _targets, quick=False),
)
