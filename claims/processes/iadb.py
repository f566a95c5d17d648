"""Claims of fewstep/processes/iadb.py."""

from __future__ import annotations

import torch

from claims.between import DATA, OTHER, between, ends
from claims.common import ENDPOINT, F64, Claim, Outcome, arms, compared, endpoint_error, experiment, plan
from claims.trained import MLP, NetworkDenoiser, fit, fresh
from fewstep.denoisers.interpolant import drawn_from
from fewstep.processes.iadb import AlphaBlending

NFE = 10


@experiment
def _solver(seed: int, ours: str) -> Outcome:
    model, (x1, wanted) = between(), ends(seed)
    made = [plan(model.process, name, NFE, "uniform") for name in (ours, "ddim")]
    errors = [endpoint_error(p(model, x1, dtype=F64), wanted).value for p in made]
    about = f"{ours}, {NFE} even steps, between two mixtures in the plane, {len(x1)} samples"
    return compared(errors, f"the paper's step (ddim), {NFE} evaluations", about, unit=ENDPOINT)


def _targets(seed: int) -> Outcome:
    """The same network, data and budget; the error of E[x1 - x0 | x] relative to its own variance."""

    def figure(predicts: str, s: int) -> float:
        model, (x0, x1) = between(), between().sample_pairs(4096, s + 50)
        t = torch.linspace(0.02, 0.98, 4096, dtype=F64)
        x = (1 - t).unsqueeze(1) * x0 + t.unsqueeze(1) * x1
        wanted, network = model(x, t).to("flow"), fresh(MLP, s, width=48, depth=2)
        untrained = NetworkDenoiser(network, AlphaBlending(), predicts, (2,), value_range=None)
        coupling = drawn_from(OTHER.sample(4096, s + 1).float())
        made = fit(untrained, DATA.sample(4096, s).float(), steps=1000, lr=2e-3, coupling=coupling, seed=s)
        with torch.no_grad():
            found = made(x.float(), t).to("flow").double()
        return float((found - wanted).square().mean() / wanted.var(0).mean())

    about = "predicting the difference, mlp of width 48, 1000 steps of 256 pairs, t from 0.02 to 0.98"
    unit = "squared error of the difference, relative to its variance"
    return arms(seed, figure, "flow", "x0", "predicting x0", about, unit=unit)


CLAIMS = (
    *(Claim("iadb", f"between two densities {ours} is nearer to the ODE's end than its own step", _solver(ours))
      for ours in ("vab-2", "dpmpp-2m")),
    Claim("iadb", "learns the difference better by predicting it than by predicting x0", _targets, quick=False),
)  # fmt: skip
