"""Claims of fewstep/denoisers/pfgmpp.py."""

from __future__ import annotations

import torch

from claims.common import EDM, F64, Claim, Noise, Outcome, sample, tolerance
from fewstep.data.digits import load
from fewstep.denoisers.dataset import DatasetDenoiser
from fewstep.denoisers.pfgmpp import PoissonDataset
from fewstep.processes.pfgmpp import PFGMpp


def _limit(seed: int) -> Outcome:
    data = load("train")[0][:256].double()
    ours, edm, worst = PoissonDataset(data, PFGMpp(degrees=1e6)), DatasetDenoiser(data, EDM()), 0.0
    for sigma in (0.1, 1.0, 10.0, 80.0):
        x, t = data[:16] + sigma * Noise(seed).normal(0, (16, 1, 8, 8), "cpu", F64), torch.tensor(sigma, dtype=F64)
        worst = max(worst, float((ours(x, t).x0 - edm(x, t).x0).abs().max()))
    return tolerance(worst, 1e-3, "D = 1e6, 256 digits, sigma 0.1, 1, 10 and 80", "largest difference from EDM's")


def _data(seed: int) -> Outcome:
    data, worst = load("train")[0][:64].double(), 0.0
    for degrees in (2.0, 64.0, 2048.0, None):
        model = PoissonDataset(data, PFGMpp(degrees=degrees))
        x = sample(model, 256, steps=18, solver="heun", timesteps="karras", seed=seed, dtype=F64)
        nearest = torch.cdist(x.flatten(1), data.flatten(1)).min(1).values
        worst = max(worst, float(nearest.quantile(0.99)))
    about = "D = 2, 64, 2048 and infinity, 64 digits, 256 samples each, heun with 18 karras steps"
    return tolerance(worst, 1e-3, about, "99th percentile of the distance from the nearest datum, largest of the four")


CLAIMS = (
    Claim("pfgmpp-dataset", "is EDM's denoiser at D = 1e6", _limit),
    Claim("pfgmpp-dataset", "leads to the data at every D", _data, quick=False),
)
