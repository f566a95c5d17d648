"""Claims of fewstep/processes/pfgmpp.py."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, over_seeds
from claims.problems import F64
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.data.digits import load
from fewstep.denoisers.pfgmpp import PoissonDataset
from fewstep.processes.pfgmpp import PFGMpp
from fewstep.sampling.sample import sample

ERROR = 0.3  # standard deviation of the error in eps, at every evaluation
DEGREES = (2.0, 64.0, 128.0, None)


def _radius(seed: int) -> Outcome:
    """Shares of the radius in twelve bins, at three D, against the integrals of the density."""
    worst, n, size = 0.0, 20_000, 64
    edges = torch.tensor([3.0, 5, 6, 7, 7.5, 8, 8.5, 9, 10, 12, 20, 100], dtype=F64)
    for degrees in (1.0, 64.0, None):
        process = PFGMpp(degrees=degrees)
        radius = process.start(lambda draw: Noise(seed).normal(draw, (n, size), "cpu", F64)).norm(dim=1)
        for low, high in zip(edges, edges[1:], strict=False):
            fine = torch.linspace(float(low), float(high), 2001, dtype=F64)
            share = float(torch.trapezoid(process.log_radius_density(fine, size).exp(), fine))
            found = float(((radius >= low) & (radius < high)).double().mean())
            worst = max(worst, abs(found - share) / math.sqrt(max(share * (1 - share), 1e-4) / n))
    return Outcome(
        worst,
        4.5,
        "tolerance",
        f"D = 1, 64 and infinity, 64 values a sample, {n} samples, eleven bins each",
        unit="largest error of a share, in its standard deviations",
    )


class _Disturbed(Denoiser):
    """A denoiser whose eps has an error of its own, the same for every process."""

    def __init__(self, model: PoissonDataset, size: float, seed: int):
        super().__init__()
        self.model, self.process, self.shape, self.size = model, model.process, model.shape, size
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        eps = self.model(x, t).eps
        error = self.size * torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
        return Prediction(eps + error, "eps", x, t, self.process)


def _robust(seed: int) -> Outcome:
    data, n = load("train")[0][:256].double(), 256
    found: dict[float | None, list[float]] = {degrees: [] for degrees in DEGREES}
    for s in range(seed, seed + 3):
        for degrees in DEGREES:
            model = PoissonDataset(data, PFGMpp(degrees=degrees))
            runs = [
                sample(_Disturbed(model, size, s), n, steps=18, solver="heun", timesteps="karras", seed=s, dtype=F64)
                for size in (0.0, ERROR)
            ]
            found[degrees].append(float((runs[1] - runs[0]).square().mean().sqrt()))
    means = ", ".join(f"D = {degrees or 'infinity'} {sum(found[degrees]) / 3:.3g}" for degrees in DEGREES)
    return over_seeds(
        lambda s: (found[2.0][s - seed], found[None][s - seed]),
        range(seed, seed + 3),
        "D infinite (EDM)",
        f"D = 2, errors of standard deviation {ERROR} in every eps, 256 digits as data, {n} samples,"
        f" heun with 18 karras steps; {means}",
        unit="root mean square distance from the run without errors",
    )


CLAIMS = (
    Claim("pfgmpp", "its noise has the radius of the paper's kernel", _radius),
    Claim("pfgmpp", "is moved less by errors of the score than diffusion is", _robust, quick=False),
)
