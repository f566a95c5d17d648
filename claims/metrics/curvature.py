"""Claims of fewstep/metrics/curvature.py."""

from __future__ import annotations

import torch

from claims.common import F64, Claim, Flow, GaussianMixture, Outcome, plan, tolerance
from claims.problems import mixture
from claims.transports import BEND, noises
from fewstep.metrics.curvature import curvature


def _gaussian(seed: int) -> Outcome:
    """Paths to one Gaussian of deviation s are `z sqrt((1 - t)^2 s^2 + t^2)`, their chords `z (s + (1 - s) t)`."""
    s, process = 0.3, Flow()
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 2, dtype=F64), s**2, process)
    noise, made = noises(seed, (2,), 64).double(), plan(process, "vab-3", 200, "uniform")
    found = curvature(made.run(model, noise, trajectory=True, dtype=F64).trajectory, made.times).value
    t = torch.linspace(1, 0, 20001, dtype=F64)
    away = (((1 - t) ** 2 * s**2 + t**2).sqrt() - s - (1 - s) * t) ** 2
    wanted = float(-torch.trapezoid(away, t) * noise.square().sum(1).mean())
    return tolerance(abs(found / wanted - 1), 1e-3, "one Gaussian, 200 evaluations", "error relative to closed form")


def _straight(seed: int) -> Outcome:
    noise = noises(seed, (2,), 64)
    ends, times = noise.flip(0) * 0.3, [1.0, 0.7, 0.2, 0.0]
    straight = curvature([torch.lerp(ends, noise, t) for t in times], times).relative
    made = plan(Flow(), "ddim", 50, "uniform")
    bent = curvature(made.run(mixture(Flow()), noise, trajectory=True).trajectory, made.times).relative
    about = "straight paths between random points, and 50 evaluations on the 8-component mixture"
    return Outcome(straight, 1e-9 * bent, "a billionth of the mixture's paths'", about, unit=BEND)


CLAIMS = (
    Claim("curvature", "the closed form on one Gaussian", _gaussian),
    Claim("curvature", "zero on straight paths", _straight),
)
