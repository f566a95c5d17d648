"""Claims of the exact flow maps: jumps compose, from pure noise to the clean end."""

from __future__ import annotations

import torch
from torch import Tensor

from claims.claim import Claim, Outcome, compared, slow, tolerance
from claims.common import F64
from claims.parts import EDM, VP, Denoiser, Flow, GaussianMixture, Noise, Process
from claims.problems import mixture
from fewstep.core.prediction import expand
from fewstep.denoisers.exact_map import ExactMap
from fewstep.denoisers.gaussian_map import GaussianMap

PROCESSES: tuple[Process, ...] = (EDM(), VP(), Flow())
POINTS = 64
MEAN, VARIANCES = torch.tensor([0.5, -1.0, 0.2], dtype=F64), torch.tensor([0.3, 1.5, 0.04], dtype=F64)
UNIT = "largest difference between two jumps and one"


def _step(process: Process, x: Tensor, t: Tensor, s: Tensor, x0: Tensor) -> Tensor:
    """DDIM's step."""
    a, b, c, d = (expand(v, x) for v in (process.alpha(t), process.sigma(t), process.alpha(s), process.sigma(s)))
    return d / b * x + (c - a * d / b) * x0


def _gap(model: Denoiser, seed: int, told: bool = True) -> float:
    """From noise over a time between to the clean end, and at once; `told` whether the model hears where."""
    process, shape = model.process, model.shape or ()
    x = process.sigma(process.t_max) * Noise(seed).normal(0, (POINTS, *shape), "cpu", F64)
    places = (process.t_max, process.time(0.2), process.t_zero)
    t, u, s = (torch.full((POINTS,), place, dtype=F64) for place in places)

    def jump(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return _step(process, x, t, s, model(x, t, **({"to": s} if told else {})).x0)

    return float((jump(jump(x, t, u), u, s) - jump(x, t, s)).abs().max())


def _closed(seed: int) -> Outcome:
    models = [GaussianMap(MEAN, VARIANCES, process).requires_grad_(False) for process in PROCESSES]
    figures = [max(_gap(model, seed, told) for model in models) for told in (True, False)]
    return compared(figures, "steps of DDIM", f"Gaussian in 3 dimensions, edm, vp and flow, {POINTS} noises", unit=UNIT)


def _composed(seed: int) -> Outcome:
    worst = max(_gap(ExactMap(mixture(process), 128), seed) for process in PROCESSES)
    about = f"8-component mixture, edm, vp and flow, {POINTS} noises, 128 steps"
    return tolerance(worst, 1e-7, about, UNIT)


def _one(seed: int) -> Outcome:
    """Every pair of five times, for a mixture of one Gaussian."""
    worst = 0.0
    for process in PROCESSES:
        closed = GaussianMap(MEAN, VARIANCES, process).requires_grad_(False)
        exact = ExactMap(GaussianMixture(torch.ones(1), MEAN[None], VARIANCES[None], process), 32)
        at = [process.t_max, *(process.time(v) for v in (-1.5, 0.0, 1.5)), process.t_zero]
        t, s = (part.flatten() for part in torch.meshgrid(*[torch.tensor(at, dtype=F64)] * 2, indexing="ij"))
        x = Noise(seed).normal(0, (len(t), 3), "cpu", F64) * expand(process.sigma(t) + 0.5, MEAN[None])
        worst = max(worst, float((exact(x, t, to=s).x0 - closed(x, t, to=s).x0).abs().max()))
    about = "a Gaussian in 3 dimensions, every pair of 5 times from noise to data, edm, vp and flow, 32 steps"
    return tolerance(worst, 1e-8, about, "largest difference from the closed form")


CLAIMS = (
    Claim("gaussian-map", "two jumps are one, which steps of DDIM are not", _closed),
    slow("exact-map", "two jumps are one on a mixture", _composed),
    Claim("exact-map", "is the closed form on one Gaussian", _one),
)
