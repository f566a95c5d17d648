"""Claims of fewstep/sampling/bridge_hybrid.py."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from claims.bridges import D, law_duel, pairs
from claims.common import F64, Claim, Noise, Outcome, plan, tolerance
from fewstep.processes.ddbm import DDBM
from fewstep.processes.resshift import ResShift


def _posterior(seed: int) -> Outcome:
    """x_{t-1} ~ N(eta_s / eta_t x_t + (eta_t - eta_s) / eta_t x0, kappa^2 eta_s (eta_t - eta_s) / eta_t), in x."""
    process = ResShift()
    model, source = pairs(process), Noise(seed)
    y, noise = model.sample(32, seed)[1], source.normal(0, (32, D), "cpu", F64)
    times = process.grid(15)
    ours = model.decode(plan(process, "shift-ancestral", timesteps=times)(model, noise, seed=seed, dtype=F64, y=y), y=y)
    x = y + process.c(times[0]) * noise
    for number, (t, s) in enumerate(pairwise(times), start=1):
        at = torch.tensor(t, dtype=F64)
        x0 = model.decode(model(process.coordinates(x, y, at), at, y=y).x0, y=y)
        eta_t, eta_s = process.b(t), process.b(s)
        z = source.normal(number, (32, D), "cpu", F64) if eta_s > 0 else torch.zeros_like(x)
        x = eta_s / eta_t * x + (eta_t - eta_s) / eta_t * x0
        x = x + process.kappa * math.sqrt(eta_s * (eta_t - eta_s) / eta_t) * z
    worst = float((ours - x).abs().max())
    return tolerance(worst, 1e-10, "15 steps against the paper's posterior in x, Gaussian pairs, the same noise")


CLAIMS = (
    *(Claim("bridge-hybrid", f"nearer the law of x0 given y than ancestral steps at {nfe}",
            law_duel(DDBM(), "bridge-hybrid", "ddpm", nfe, "uniform"))
      for nfe in (20, 40)),
    Claim("shift-ancestral", "is ResShift's chain number for number", _posterior),
)  # fmt: skip
