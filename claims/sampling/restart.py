"""Claims of fewstep/sampling/restart.py."""

from __future__ import annotations

import math

import torch

from claims.claim import Claim, Outcome, compared, experiment
from claims.common import EDM, F64, GaussianMixture, Noise, plan, sliced_wasserstein
from claims.duels import orders
from claims.problems import mixture


@experiment
def _restarted(seed: int, spread: float) -> Outcome:
    """10 steps and two rounds of 3 steps over [0.2, 10], against the same solver with as many evaluations."""
    process, model, n = EDM(), mixture(EDM()), 4096
    noise, data = spread * Noise(seed).normal(0, (n, 2), "cpu", F64), model.sample(n, seed + 1)
    first = plan(process, "restart", 10, "karras", intervals=[(0.2, 10.0, 2, 3)])
    second = plan(process, "rho-rk-2", timesteps="karras", nfe=first.nfe)
    samples = (made(model, noise, seed=seed, dtype=F64) for made in (first, second))
    figures = [sliced_wasserstein(x, data, projections=64).value for x in samples]
    about = f"10 steps, 2 restarts of 3 steps over [0.2, 10], {first.nfe} evaluations, times karras, 8-component"
    about += f" mixture, edm, initial noise times {spread:g}, {n} samples"
    return compared(figures, f"rho-rk-2 alone, {second.nfe} evaluations", about, unit="sliced Wasserstein distance")


def _contraction(seed: int) -> Outcome:
    """On N(0, c) two rounds leave (c + low^2)^2 / (c + high^2)^2 of what the start's variance is off by."""
    process, c, low, high, n = EDM(), 0.5, 0.625, 4.0, 16_384
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 2), c, process)
    times = [10.0 * 0.5**k for k in range(10)]
    noise = Noise(seed).normal(0, (n, 2), "cpu", F64)
    noise = 3.0 * noise / noise.std() * math.sqrt(c + 100) / 10
    made = plan(process, "restart", timesteps=times, intervals=[(low, high, 2, 12)], descent="dpm-solver-3")
    found = float(made(model, noise, seed=seed, dtype=F64).var()) / (c + times[-1] ** 2) - 1
    wanted = (3.0**2 - 1) * ((c + low**2) / (c + high**2)) ** 2
    about = f"relative excess variance {found:.3f} for {wanted:.3f} after 2 rounds over [{low}, {high}], 8 before,"
    about += f" normal data, edm, {n} samples"
    limit, against = 4 * math.sqrt(2 / (2 * n)), "tolerance, four standard errors"
    return Outcome(abs(found - wanted), limit, against, about, unit="|excess variance - theory|")


CLAIMS = (
    Claim("restart", "is of order 2 without restarts", orders(EDM(), "restart")),
    Claim("restart", "each round shrinks an error of the start as the theory says", _contraction),
    Claim("restart", "is nearer to the data's distribution than the ODE alone at equal evaluations", _restarted(1.0)),
    Claim("restart", "and when the initial noise is 1.5 times too wide", _restarted(1.5)),
)
