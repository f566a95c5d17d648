"""Claims of fewstep/metrics/endpoint.py."""

from __future__ import annotations

from itertools import pairwise

import torch

from claims.claim import Claim, Outcome, compared, tolerance
from claims.common import EDM, F64, VP, GaussianMixture, Noise, endpoint_error, frechet, plan
from claims.problems import mixture, problem


def _gaussian(seed: int) -> Outcome:
    """One Gaussian about 0 of deviation s: ddim multiplies the state by (s^2 + sigma_a sigma_b) / (s^2 + sigma_a^2)."""
    s, process = 0.5, EDM()
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 3, dtype=F64), s**2, process)
    noise, made = Noise(seed).normal(0, (64, 3), "cpu", F64), plan(process, "ddim", 10, "karras")
    factor = process.t_max
    for a, b in pairwise(made.times):
        factor *= (s**2 + a * b) / (s**2 + a * a)
    solution = noise * process.t_max * s / (s**2 + process.t_max**2) ** 0.5
    wanted = abs(factor / (process.t_max * s / (s**2 + process.t_max**2) ** 0.5) - 1)
    found = endpoint_error(made(model, noise, dtype=F64), solution).value
    about = f"ddim, 10 steps, one Gaussian under edm, whose error is {wanted:.4g} in closed form"
    return tolerance(abs(found / wanted - 1), 1e-9, about, "relative error")


def _steady(seed: int) -> Outcome:
    """How much the figure depends on which 32 noises were drawn."""
    on = problem(VP(), seed)
    samples, real = on.run(plan(VP(), "ddim", timesteps="uniform", nfe=20)), mixture(VP()).sample(2000, seed)
    parts = list(zip(samples.split(32), on.reference.split(32), strict=True))
    ours = torch.tensor([endpoint_error(x, reference).value for x, reference in parts])
    theirs = torch.tensor([frechet(x, real).value for x, _ in parts])
    figures = [float(values.std() / values.mean()) for values in (ours, theirs)]
    about = "ddim, 20 uniform steps, 8-component mixture, vp, 8 batches of 32 noises"
    return compared(figures, "the Frechet distance", about, unit="standard deviation over mean")


CLAIMS = (
    Claim("endpoint", "is the error in closed form on a Gaussian", _gaussian),
    Claim("endpoint", "depends less on which few noises are drawn than the Frechet distance", _steady),
)
