"""Claims of fewstep/sampling/time_shift.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome
from claims.problems import digits
from fewstep.core.noise import Noise
from fewstep.data.open import open_data
from fewstep.hub.models import load
from fewstep.metrics.frechet import frechet
from fewstep.sampling.build import plan
from fewstep.sampling.time_shift import time_shift

WINDOW, N = 0.5, 1000


def _frechet(seed: int, solver: str, steps: int, timesteps: str) -> Outcome:
    model = load("digits")
    real = open_data("digits", split="train").images
    noise, labels = Noise(seed).normal(0, (N, 1, 8, 8)), torch.arange(N) % 10
    made = plan(model.process, solver, steps, timesteps)
    shifted = time_shift(made, WINDOW, data_variance=float(real.flatten(1).var(1).mean()))
    ours, theirs = (frechet(p(model, noise, label=labels), real).value for p in (shifted, made))
    return Outcome(
        ours,
        theirs,
        f"{solver} with its own times",
        f"{solver}, {steps} evaluations, times {timesteps}, window {WINDOW:g} in log-SNR up to log-SNR 0, the data's"
        f" mean pixel variance, embedded digits, {N} samples against the training images",
        unit="Frechet distance in pixels",
    )


def _gap(seed: int) -> Outcome:
    """The exposure bias itself: how far a state's variance is from the nominal one, with shifted times and without."""
    problem = digits(seed)
    made = plan(problem.model.process, "ddim", 8, "karras")
    real = open_data("digits", split="train").images
    variance = float(real.flatten(1).var(1).mean())
    gaps = []
    for window in (WINDOW, 0.0):
        run = time_shift(made, window, data_variance=variance).run(problem.model, problem.noise, **problem.condition)
        gaps.append(float(run.report["gap"].abs().mean()))
    return Outcome(
        gaps[0],
        gaps[1],
        "ddim with its own times",
        f"ddim, 8 evaluations, karras, window {WINDOW:g}, embedded digits, {len(problem.noise)} noises",
        unit="mean |variance / nominal - 1| of the states",
    )


CLAIMS = (
    Claim(
        "time-shift",
        "lowers the Frechet distance of ddim at 10 evaluations on the embedded digits",
        lambda seed: _frechet(seed, "ddim", 10, "log-snr"),
        quick=False,
    ),
    Claim(
        "time-shift",
        "lowers the Frechet distance of ddim at 5 evaluations on karras times on the embedded digits",
        lambda seed: _frechet(seed, "ddim", 5, "karras"),
        quick=False,
    ),
    Claim("time-shift", "brings the states' variance nearer to the nominal one", _gap, quick=False),
)
