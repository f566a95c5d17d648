"""Claims of fewstep/training/constraint.py."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from claims.common import Claim, Noise, Outcome, arms, experiment, plan, sliced_wasserstein
from claims.objectives import PROCESS
from claims.trained import MLP, NetworkDenoiser, Objective, fit, fresh
from fewstep.training.constraint import Constraint, Residual

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
    model = NetworkDenoiser(fresh(MLP, seed, shape), PROCESS, "x0", shape)
    objective = Objective(model, terms=[(factor, Constraint(RESIDUALS[problem]))])
    data = _data(problem, 20_000, 100)
    trained = fit(model, data, steps=STEPS, batch=BATCH, lr=2e-3, objective=objective, seed=seed)
    return plan(PROCESS, "dpmpp-2m", 10, "log-snr")(trained, Noise(seed).normal(0, (SAMPLES, *shape)))


def _residual(problem: str, factor: float, seed: int) -> float:
    return float(RESIDUALS[problem](_samples(problem, factor, seed), {}).square().mean().sqrt())


def _law(problem: str, factor: float, seed: int) -> float:
    return sliced_wasserstein(_samples(problem, factor, seed), _data(problem, SAMPLES, seed + 1), projections=64).value


@experiment
def _constrained(seed: int, problem: str, figure: Callable[[str, float, int], float], unit: str) -> Outcome:
    """A network trained with the residual as a term and without."""
    about = f"{problem}; perceptron for x0, {STEPS} steps of {BATCH} points, vp, factor {FACTOR}; dpmpp-2m, 10"
    about += f" evaluations, {SAMPLES} samples"
    return arms(seed, functools.partial(figure, problem), FACTOR, 0.0, "no term", about, unit=unit)


CLAIMS = tuple(
    Claim("constraint", f"{sentence} ({problem})", _constrained(problem, figure, unit), quick=False)
    for problem in RESIDUALS
    for sentence, figure, unit in (
        ("samples obey the data's equation better", _residual, "root mean square residual of the samples"),
        ("samples come nearer to the data's law", _law, "sliced Wasserstein distance"),
    )
)
