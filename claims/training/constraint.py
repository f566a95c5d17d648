"""Claims of fewstep/training/constraint.py."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, over_seeds
from claims.objectives import PROCESS, SEEDS, fresh
from fewstep.core.noise import Noise
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.networks.mlp import MLP
from fewstep.sampling.build import plan
from fewstep.training.constraint import Constraint, Residual
from fewstep.training.fit import fit
from fewstep.training.objective import Objective

STEPS, BATCH, FACTOR, SAMPLES = 1000, 128, 0.1, 4096


def _data(problem: str, n: int, seed: int) -> Tensor:
    """Points on the unit circle, twice as dense at one side; or in four dimensions with a sum of zero."""
    generator = torch.Generator().manual_seed(seed)
    if problem == "circle":
        angle = 2 * math.pi * torch.rand(n, generator=generator)
        angle = angle + angle.sin() / 3
        return torch.stack([angle.cos(), angle.sin()], dim=1)
    x = torch.randn(n, 4, generator=generator) * torch.tensor([1.0, 0.6, 0.4, 0.2])
    x = x + x[:, :1].abs()
    return x - x.mean(1, keepdim=True)


RESIDUALS: dict[str, Residual] = {
    "circle": lambda x, condition: x.square().sum(1) - 1,
    "zero sum": lambda x, condition: x.sum(1),
}


@functools.cache
def _samples(problem: str, factor: float, seed: int) -> Tensor:
    shape = (2,) if problem == "circle" else (4,)
    model = NetworkDenoiser(fresh(lambda: MLP(shape), seed), PROCESS, "x0", shape)
    objective = Objective(model, terms=[(factor, Constraint(RESIDUALS[problem]))])
    data = _data(problem, 20_000, 100)
    trained = fit(model, data, steps=STEPS, batch=BATCH, lr=2e-3, objective=objective, seed=seed)
    return plan(PROCESS, "dpmpp-2m", 10, "log-snr")(trained, Noise(seed).normal(0, (SAMPLES, *shape)))


def _about(problem: str) -> str:
    return (
        f"{problem}; perceptron for x0, {STEPS} steps of {BATCH} points, vp, factor {FACTOR}; dpmpp-2m, 10 evaluations,"
        f" {SAMPLES} samples"
    )


def _residual(problem: str) -> Outcome:
    return over_seeds(
        lambda seed: tuple(
            float(RESIDUALS[problem](_samples(problem, factor, seed), {}).square().mean().sqrt())
            for factor in (FACTOR, 0.0)
        ),
        SEEDS,
        "no term",
        _about(problem),
        unit="root mean square residual of the samples",
    )


def _law(problem: str) -> Outcome:
    return over_seeds(
        lambda seed: tuple(
            sliced_wasserstein(_samples(problem, factor, seed), _data(problem, SAMPLES, seed + 1), projections=64).value
            for factor in (FACTOR, 0.0)
        ),
        SEEDS,
        "no term",
        _about(problem),
        unit="sliced Wasserstein distance",
    )


CLAIMS = tuple(
    Claim("constraint", f"{sentence} ({problem})", lambda seed, run=run, p=problem: run(p), quick=False)
    for problem in RESIDUALS
    for sentence, run in (
        ("samples obey the data's equation better", _residual),
        ("samples come nearer to the data's law", _law),
    )
)
