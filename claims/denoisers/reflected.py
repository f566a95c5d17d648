"""Claims of fewstep/denoisers/reflected.py."""

from __future__ import annotations

import math

import torch

from claims.claim import Claim, Outcome
from fewstep.denoisers.reflected import ReflectedDataset, ReflectedDensity, ReflectedNetwork
from fewstep.networks.mlp import MLP
from fewstep.processes.reflected import Reflected
from fewstep.sampling.sample import sample
from fewstep.training.fit import fit

F64 = torch.float64
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
    return Outcome(
        worst,
        1e-9,
        "tolerance",
        "20 points in three dimensions, four noise levels, against autograd",
        unit="error of eps",
    )


def _steps(seed: int) -> Outcome:
    """Root mean square difference of the samples' quantiles from the exact ones."""

    def error(steps: int) -> float:
        x = sample(_density(), 4000, steps=steps, solver="ddpm", seed=seed, batch_size=4000, dtype=F64)
        shares = torch.linspace(0, 1, 4002, dtype=F64)[1:-1, None].expand(-1, 3)
        return float((_density().cumulative(x.sort(0).values) - shares).square().mean().sqrt())

    return Outcome(
        error(32),
        error(8),
        "8 steps",
        "32 steps of ddpm, exact score, heap at a wall",
        unit="error of the distribution function",
    )


def _walls(seed: int) -> Outcome:
    """Of a barely trained network, whose score is wrong: how many samples leave the range of the data."""
    model = _density()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = ReflectedNetwork(MLP((3,), width=32, depth=2), PROCESS, shape=(3,), value_range=(0.0, 1.0))
    trained = fit(made, model.sample(2000, seed).float(), steps=50, batch=128, lr=3e-3, seed=seed)
    x = sample(trained, 2000, steps=10, seed=seed, batch_size=2000)
    outside = float(((x < 0) | (x > 1)).any(1).double().mean())
    return Outcome(
        outside,
        1e-9,
        "tolerance",
        "mlp, 50 steps of training, 2000 samples of 10 evaluations",
        unit="share of samples outside",
    )


CLAIMS = (
    Claim("reflected-dataset", "equals the gradient of the log density of its kernels", _score),
    Claim("reflected-density", "more steps of the reverse SDE come closer to the density", _steps),
    Claim("reflected-network", "no sample leaves the walls, however poor the network", _walls, quick=False),
)
