"""Claims of fewstep/sampling/bridge_hybrid.py."""

from __future__ import annotations

import math

import torch

from claims.bridges import F64, D, law_duel, pairs, tolerance
from claims.claim import Claim, Outcome
from fewstep.core.noise import Noise
from fewstep.processes.ddbm import DDBM
from fewstep.processes.resshift import ResShift
from fewstep.sampling.build import plan


def _hybrid(nfe: int, seed: int) -> Outcome:
    return law_duel(DDBM(), "bridge-hybrid", "ddpm", nfe, "uniform", seed)


def _posterior(seed: int) -> Outcome:
    """x_{t-1} ~ N(eta_s / eta_t x_t + (eta_t - eta_s) / eta_t x0, kappa^2 eta_s (eta_t - eta_s) / eta_t), in x."""
    process = ResShift()
    model, source = pairs(process), Noise(seed)
    y, noise = model.sample(32, seed)[1], source.normal(0, (32, D), "cpu", F64)
    times = process.grid(15)
    made = plan(process, "shift-ancestral", timesteps=times)
    ours = model.decode(made(model, noise, seed=seed, dtype=F64, y=y), y=y)
    x = y + process.c(times[0]) * noise
    for number, (t, s) in enumerate(zip(times, times[1:], strict=False), start=1):
        at = torch.tensor(t, dtype=F64)
        x0 = model.decode(model(process.coordinates(x, y, at), at, y=y).x0, y=y)
        eta_t, eta_s = process.b(t), process.b(s)
        z = source.normal(number, (32, D), "cpu", F64) if eta_s > 0 else torch.zeros_like(x)
        x = eta_s / eta_t * x + (eta_t - eta_s) / eta_t * x0
        x = x + process.kappa * math.sqrt(eta_s * (eta_t - eta_s) / eta_t) * z
    worst = float((ours - x).abs().max())
    return tolerance(worst, 1e-10, "15 steps against the paper's posterior in x, Gaussian pairs, the same noise")


CLAIMS = (
    Claim("bridge-hybrid", "nearer the law of x0 given y than ancestral steps at 20", lambda s: _hybrid(20, s)),
    Claim("bridge-hybrid", "nearer the law of x0 given y than ancestral steps at 40", lambda s: _hybrid(40, s)),
    Claim("shift-ancestral", "is ResShift's chain number for number", _posterior),
)
