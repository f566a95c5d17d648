"""Claims of fewstep/denoisers/bridge.py."""

from __future__ import annotations

import functools

import torch

from claims.bridges import D, pairs
from claims.common import EDM, F64, Claim, Outcome, arms
from claims.restored import ARMS, DIFFUSION, against_diffusion
from claims.trained import MLP, NoiseLevels, fit, fresh, rows_of
from fewstep.denoisers.bridge import BridgeDenoiser, statistics
from fewstep.processes.ddbm import DDBM

STEPS, BATCH = 500, 256
PROCESS = DDBM(EDM(sigma_max=10.0))
BUDGET = "in 5 evaluations than a conditional diffusion, each by its best solver"


@functools.cache
def _error(precondition: str, seed: int) -> float:
    """Mean squared error against the exact denoiser, over what y leaves open, levels uniform in log-SNR."""
    exact = pairs(PROCESS)
    x0, y = (value.float() for value in exact.sample(20_000, 0))
    found = statistics(x0, y) if precondition == "bridge" else {}
    network = fresh(MLP, seed, (D,), picture=D)
    model = BridgeDenoiser(network, PROCESS, precondition=precondition, shape=(D,), **found)
    levels = NoiseLevels(PROCESS, "log-normal", mean=0.0, std=1.5)
    model = fit(model, rows_of(x0, y=y), steps=STEPS, batch=BATCH, lr=3e-3, seed=seed, levels=levels)
    x0, y = (value.float() for value in exact.sample(4096, 1))
    generator = torch.Generator().manual_seed(2)
    t = levels.quantile(torch.rand(4096, generator=generator, dtype=F64))
    eps = torch.randn(x0.shape, generator=generator)
    u = (PROCESS.alpha(t)[:, None] * x0 + PROCESS.sigma(t)[:, None] * eps).float()
    with torch.no_grad():
        return float((model(u, t, y=y).x0 - exact(u, t, y=y).x0).square().mean())


def _precondition(seed: int) -> Outcome:
    about = f"Gaussian pairs, DDBM over edm to sigma 10, {STEPS} steps of {BATCH}"
    against, unit = "the same network without preconditioning", "mean squared error against the exact x0"
    return arms(seed, _error, "bridge", "none", against, about, unit=unit)


CLAIMS = (
    Claim("bridge-network", "DDBM's preconditioning learns the exact denoiser faster", _precondition, quick=False),
    *(Claim("bridge-network", f"under {arm} it deblurs digits better {BUDGET}", against_diffusion(arm), quick=False)
      for arm in ARMS if arm != DIFFUSION),
)  # fmt: skip
