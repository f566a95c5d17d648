"""Claims of fewstep/processes/reflected.py."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from claims.bridges import largest
from claims.common import F64, VP, Claim, Outcome, experiment, over_seeds, sample, slow, tolerance
from fewstep.denoisers.dataset import DatasetDenoiser
from fewstep.denoisers.reflected import ReflectedDensity
from fewstep.processes.reflected import Reflected, kernel

BINS, SAMPLES, STEPS = 32, 10_000, 12


@functools.cache
def density() -> ReflectedDensity:
    """Three quarters of the mass in a heap at the left wall, a quarter at the right one, both of width 0.1."""
    n = math.pi * torch.arange(1, 31, dtype=F64)
    heap = 2 * (-0.5 * (0.1 * n) ** 2).exp()
    return ReflectedDensity((heap * (0.75 + 0.25 * n.cos()))[None], Reflected())


@functools.cache
def free() -> DatasetDenoiser:
    """The exact VP denoiser of the same density, as 2000 points at its quantiles."""
    shares = (torch.arange(2000, dtype=F64) + 0.5) / 2000
    low, high = torch.zeros(2000, 1, dtype=F64), torch.ones(2000, 1, dtype=F64)
    for _ in range(50):
        above = density().cumulative(0.5 * (low + high)) > shares[:, None]
        low, high = torch.where(above, low, 0.5 * (low + high)), torch.where(above, 0.5 * (low + high), high)
    return DatasetDenoiser(low, VP())


def variation(x: Tensor) -> float:
    """Total variation of the samples' histogram from the exact one."""
    exact = density().cumulative(torch.linspace(0, 1, BINS + 1, dtype=F64)[:, None]).diff(dim=0)[:, 0]
    return float(0.5 * (torch.histc(x, BINS, 0, 1) / len(x) - exact).abs().sum())


@experiment
def _against_clipping(seed: int, solver: str) -> Outcome:
    def run(number: int) -> tuple[float, float]:
        made: dict[str, Any] = {"solver": solver, "steps": STEPS, "seed": number, "batch_size": SAMPLES, "dtype": F64}
        ours, theirs = (sample(model, SAMPLES, **made) for model in (density(), free()))
        return variation(ours), variation(theirs.clamp(0, 1))

    floor = variation(density().sample(SAMPLES, seed))
    about = f"{solver}, {STEPS} steps, exact scores, density with its mass at the walls, {SAMPLES} samples in {BINS}"
    about += f" bins; exact samples have {floor:.2g}"
    return over_seeds(run, f"vp, clipped to [0, 1], {solver}, {STEPS} steps", about, unit="total variation")(seed)


def _kernel(seed: int) -> Outcome:
    """The kernel against many terms of both sums, at standard deviations on both sides of the switch."""
    y, x = torch.rand(2, 200, generator=torch.Generator().manual_seed(seed), dtype=F64)
    m, n = 2 * torch.arange(-40, 41, dtype=F64), math.pi * torch.arange(1, 400, dtype=F64)
    away, worst = torch.stack([y[:, None] - x[:, None] + m, y[:, None] + x[:, None] + m]), 0.0
    for std in (0.02, 0.1, 0.3, 0.49, 0.51, 0.8, 1.5):
        found = kernel(y, x, torch.tensor(std, dtype=F64))[0].exp()
        images = ((-0.5 * (away / std) ** 2).exp() / (std * math.sqrt(2 * math.pi))).sum((0, 2))
        cosines = 1 + 2 * ((-0.5 * (n * std) ** 2).exp() * (n * x[:, None]).cos() * (n * y[:, None]).cos()).sum(1)
        worst = max(worst, *(float((found - other).abs().max() * std) for other in (images, cosines)))
    about = "200 pairs of points, standard deviations 0.02 to 1.5, 81 mirror images and 399 cosines"
    return tolerance(worst, 1e-12, about, "largest difference of the density, in parts of its peak")


def _uniform(seed: int) -> Outcome:
    process, y = Reflected(), torch.linspace(0, 1, 201, dtype=F64)
    last = torch.tensor(process.sigma(process.t_max), dtype=F64)
    worst = largest([kernel(y, y.new_tensor(x), last)[0].exp() - 1 for x in (0.0, 0.3, 0.5, 1.0)])
    return tolerance(worst, 1e-8, "from four points, at the last time", "largest |density - 1|")


CLAIMS = (
    Claim("reflected", "the kernel equals the sum over mirror images and the cosine series", _kernel),
    Claim("reflected", "the motion ends uniform on the cube, wherever it starts", _uniform),
    *(slow("reflected", f"closer in total variation than clipped VP where the mass is at the walls, {name}",
           _against_clipping(solver)) for name, solver in (("reverse SDE", "ddpm"), ("ODE", "ddim"))),
)  # fmt: skip
