"""Claims of fewstep/denoisers/bridge.py."""

from __future__ import annotations

import functools

import torch

from claims.bridges import D, pairs
from claims.claim import Claim, Outcome, over_seeds
from claims.restored import CLAIMS_ON_DIGITS
from fewstep.denoisers.bridge import BridgeDenoiser, statistics
from fewstep.networks.mlp import MLP
from fewstep.processes.ddbm import DDBM
from fewstep.processes.ve import EDM
from fewstep.training.fit import fit, rows_of
from fewstep.training.noise_levels import NoiseLevels

STEPS, BATCH = 500, 256
PROCESS = DDBM(EDM(sigma_max=10.0))


@functools.cache
def _error(precondition: str, seed: int) -> float:
    """Mean squared error against the exact denoiser, over what y leaves open, levels uniform in log-SNR."""
    exact = pairs(PROCESS)
    x0, y = (value.float() for value in exact.sample(20_000, 0))
    torch.manual_seed(seed)
    found = statistics(x0, y) if precondition == "bridge" else {}
    model = BridgeDenoiser(MLP((D,), picture=D), PROCESS, precondition=precondition, shape=(D,), **found)
    levels = NoiseLevels(PROCESS, "log-normal", mean=0.0, std=1.5)
    model = fit(model, rows_of(x0, y=y), steps=STEPS, batch=BATCH, lr=3e-3, seed=seed, levels=levels)
    x0, y = (value.float() for value in exact.sample(4096, 1))
    generator = torch.Generator().manual_seed(2)
    t = levels.quantile(torch.rand(4096, generator=generator, dtype=torch.float64))
    eps = torch.randn(x0.shape, generator=generator)
    u = (PROCESS.alpha(t)[:, None] * x0 + PROCESS.sigma(t)[:, None] * eps).float()
    with torch.no_grad():
        return float((model(u, t, y=y).x0 - exact(u, t, y=y).x0).square().mean())


def _precondition(seed: int) -> Outcome:
    return over_seeds(
        lambda number: (_error("bridge", number), _error("none", number)),
        range(seed, seed + 3),
        "the same network without preconditioning",
        f"Gaussian pairs, DDBM over edm to sigma 10, {STEPS} steps of {BATCH}",
        unit="mean squared error against the exact x0",
    )


CLAIMS = (
    Claim("bridge-network", "DDBM's preconditioning learns the exact denoiser faster", _precondition, quick=False),
    *CLAIMS_ON_DIGITS,
)
