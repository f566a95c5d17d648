"""Claims of fewstep/denoisers/interpolant.py."""

from __future__ import annotations

import torch

from claims.between import DATA, between, learned
from claims.common import F64, Claim, Flow, GaussianMixture, Outcome, arms, tolerance
from fewstep.denoisers.interpolant import MixtureInterpolant
from fewstep.processes.interpolants import Interpolant


def _one_sided(seed: int) -> Outcome:
    normal = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.0, Flow())
    model = MixtureInterpolant.independent(DATA, normal, Interpolant())
    x, t = torch.randn(99, 2, generator=torch.Generator().manual_seed(seed), dtype=F64), torch.linspace(0.01, 1, 99)
    worst = float((model(x, t.double()).velocity - DATA(x, t.double()).velocity).abs().max())
    return tolerance(worst, 1e-9, "three components, 99 points and times", "largest difference")


def _error(steps: int, seed: int) -> float:
    """v's error after so many steps of training, on states of the process at t from 0.02 to 0.98."""
    exact, n = between("linear", "brownian"), 4096
    x0, x1 = exact.sample_pairs(n, seed + 50)
    t = torch.linspace(0.02, 0.98, n, dtype=F64)
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed + 60), dtype=F64)
    x = (1 - t).unsqueeze(1) * x0 + t.unsqueeze(1) * x1 + exact.process.gamma(t).unsqueeze(1) * z
    wanted = exact(x, t).velocity
    with torch.no_grad():
        found = learned(seed, steps)(x.float(), t).velocity.double()
    return float((found - wanted).square().mean() / wanted.var(0).mean())


def _regression(seed: int) -> Outcome:
    about = "800 steps of 256 pairs, mlp of width 48, velocity and latent noise, brownian latent"
    unit = "squared error of the velocity, relative to its variance"
    return arms(seed, _error, 800, 100, "100 steps", about, unit=unit)


CLAIMS = (
    Claim("mixture-interpolant", "from the standard normal it is the Gaussian mixture's own denoiser", _one_sided),
    Claim("interpolant-network", "nears the exact velocity as it trains", _regression, quick=False),
)
