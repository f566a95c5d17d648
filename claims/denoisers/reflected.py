"""Claims of fewstep/denoisers/reflected.py."""

from __future__ import annotations

import math

import torch

from claims.common import F64, Claim, Outcome, sample, tolerance
from claims.trained import MLP, fit, fresh
from fewstep.denoisers.reflected import ReflectedDataset, ReflectedDensity, ReflectedNetwork
from fewstep.processes.reflected import Reflected

PROCESS = Reflected()


def _density() -> ReflectedDensity:
    n = math.pi * torch.arange(1, 31, dtype=F64)
    return ReflectedDensity((2 * (-0.5 * (0.1 * n) ** 2).exp()).expand(3, -1), PROCESS)


def _score(seed: int) -> Outcome:
    data = torch.rand(20, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
    model, worst = ReflectedDataset(data, PROCESS), 0.0
    y = torch.rand(50, 3, generator=torch.Generator().manual_seed(seed + 1), dtype=F64).requires_grad_(True)
    for t in (0.2, 0.5, 0.8, 1.0):
        time = torch.tensor(t, dtype=F64)
        logs = PROCESS.kernel(y.unsqueeze(1), data, PROCESS.sigma(time))[0].sum(-1).logsumexp(1)
        eps = -PROCESS.sigma(time) * torch.autograd.grad(logs.sum(), y)[0]
        worst = max(worst, float((model(y.detach(), time).eps - eps).abs().max()))
    return tolerance(worst, 1e-9, "20 points in three dimensions, four noise levels, against autograd", "error of eps")


def _steps(seed: int) -> Outcome:
    """Root mean square difference of the samples' quantiles from the exact ones."""

    def error(steps: int) -> float:
        x = sample(_density(), 4000, steps=steps, solver="ddpm", seed=seed, batch_size=4000, dtype=F64)
        shares = torch.linspace(0, 1, 4002, dtype=F64)[1:-1, None].expand(-1, 3)
        return float((_density().cumulative(x.sort(0).values) - shares).square().mean().sqrt())

    about, unit = "32 steps of ddpm, exact score, heap at a wall", "error of the distribution function"
    return Outcome(error(32), error(8), "8 steps", about, unit=unit)


def _walls(seed: int) -> Outcome:
    """Of a barely trained network, whose score is wrong: how many samples leave the range of the data."""
    network = fresh(MLP, seed, (3,), width=32, depth=2)
    made = ReflectedNetwork(network, PROCESS, shape=(3,), value_range=(0.0, 1.0))
    trained = fit(made, _density().sample(2000, seed).float(), steps=50, batch=128, lr=3e-3, seed=seed)
    x = sample(trained, 2000, steps=10, seed=seed, batch_size=2000)
    outside = float(((x < 0) | (x > 1)).any(1).double().mean())
    about = "mlp, 50 steps of training, 2000 samples of 10 evaluations"
    return tolerance(outside, 1e-9, about, "share of samples outside")


CLAIMS = (
    Claim("reflected-dataset", "equals the gradient of the log density of its kernels", _score),
    Claim("reflected-density", "more steps of the reverse SDE come closer to the density", _steps),
    Claim("reflected-network", "no sample leaves the walls, however poor the network", _walls, quick=False),
)
