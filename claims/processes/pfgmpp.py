"""Claims of fewstep/processes/pfgmpp.py."""

from __future__ import annotations

import functools
import math
from itertools import pairwise

import torch
from torch import Tensor

from claims.common import F64, Answers, Claim, Noise, Outcome, arms, sample, tolerance
from fewstep.data.digits import load
from fewstep.denoisers.pfgmpp import PoissonDataset
from fewstep.processes.pfgmpp import PFGMpp

ERROR = 0.3  # standard deviation of the error in eps, at every evaluation
DEGREES = (2.0, 64.0, 128.0, None)


def _radius(seed: int) -> Outcome:
    """Shares of the radius in twelve bins, at three D, against the integrals of the density."""
    worst, n, size = 0.0, 20_000, 64
    edges = [3.0, 5, 6, 7, 7.5, 8, 8.5, 9, 10, 12, 20, 100]
    for degrees in (1.0, 64.0, None):
        process = PFGMpp(degrees=degrees)
        radius = process.start(lambda draw: Noise(seed).normal(draw, (n, size), "cpu", F64)).norm(dim=1)
        for low, high in pairwise(edges):
            fine = torch.linspace(low, high, 2001, dtype=F64)
            share = float(torch.trapezoid(process.log_radius_density(fine, size).exp(), fine))
            found = float(((radius >= low) & (radius < high)).double().mean())
            worst = max(worst, abs(found - share) / math.sqrt(max(share * (1 - share), 1e-4) / n))
    about = f"D = 1, 64 and infinity, 64 values a sample, {n} samples, eleven bins each"
    return tolerance(worst, 4.5, about, "largest error of a share, in its standard deviations")


def _disturbed(model: PoissonDataset, size: float, seed: int) -> Answers:
    """A denoiser whose eps has an error of its own, the same for every process."""
    generator = torch.Generator().manual_seed(seed)

    def answer(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t).eps + size * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    return Answers(answer, model.process, model.shape, "eps")


@functools.cache
def _moved(degrees: float | None, seed: int) -> float:
    """How far errors in every eps move 256 samples, root mean square."""
    model, options = (
        PoissonDataset(load("train")[0][:256].double(), PFGMpp(degrees=degrees)),
        {"steps": 18, "seed": seed},
    )
    plain, moved = (
        sample(_disturbed(model, size, seed), 256, solver="heun", timesteps="karras", dtype=F64, **options)
        for size in (0.0, ERROR)
    )
    return float((moved - plain).square().mean().sqrt())


def _robust(seed: int) -> Outcome:
    means = {d: sum(_moved(d, s) for s in (seed, seed + 1, seed + 2)) / 3 for d in DEGREES}
    found = ", ".join(f"D = {d or 'infinity'} {mean:.3g}" for d, mean in means.items())
    about = f"D = 2, errors of standard deviation {ERROR} in every eps, 256 digits as data, 256 samples, heun with 18"
    about += f" karras steps; {found}"
    unit = "root mean square distance from the run without errors"
    return arms(seed, _moved, 2.0, None, "D infinite (EDM)", about, unit=unit)


CLAIMS = (
    Claim("pfgmpp", "its noise has the radius of the paper's kernel", _radius),
    Claim("pfgmpp", "is moved less by errors of the score than diffusion is", _robust, quick=False),
)
