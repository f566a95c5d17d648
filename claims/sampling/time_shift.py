"""Claims of fewstep/sampling/time_shift.py."""

from __future__ import annotations

import torch

from claims.common import Claim, Noise, Outcome, compared, experiment, frechet, plan
from claims.problems import problem
from fewstep.data.open import open_data
from fewstep.hub.models import load
from fewstep.sampling.time_shift import time_shift

WINDOW, N = 0.5, 1000


def _real() -> tuple[torch.Tensor, float]:
    """The training digits, and their mean pixel variance."""
    real = open_data("digits", split="train").images
    return real, float(real.flatten(1).var(1).mean())


@experiment
def _frechet(seed: int, solver: str, steps: int, timesteps: str) -> Outcome:
    model, (real, variance) = load("digits"), _real()
    noise, labels = Noise(seed).normal(0, (N, 1, 8, 8)), torch.arange(N) % 10
    made = plan(model.process, solver, steps, timesteps)
    shifted = time_shift(made, WINDOW, data_variance=variance)
    figures = [frechet(p(model, noise, label=labels), real).value for p in (shifted, made)]
    about = f"{solver}, {steps} evaluations, times {timesteps}, window {WINDOW:g} in log-SNR up to log-SNR 0, the"
    about += f" data's mean pixel variance, embedded digits, {N} samples against the training images"
    return compared(figures, f"{solver} with its own times", about, unit="Frechet distance in pixels")


def _gap(seed: int) -> Outcome:
    """The exposure bias itself: how far a state's variance is from the nominal one, with shifted times and without."""
    on = problem("digits", seed)
    made = plan(on.model.process, "ddim", 8, "karras")
    runs = (
        time_shift(made, w, data_variance=_real()[1]).run(on.model, on.noise, **on.condition) for w in (WINDOW, 0.0)
    )
    gaps = [float(run.report["gap"].abs().mean()) for run in runs]
    about = f"ddim, 8 evaluations, karras, window {WINDOW:g}, {on.about}"
    return compared(gaps, "ddim with its own times", about, unit="mean |variance / nominal - 1| of the states")


CLAIMS = (
    Claim("time-shift", "lowers the Frechet distance of ddim at 10 evaluations on the embedded digits",
          _frechet("ddim", 10, "log-snr"), quick=False),
    Claim("time-shift", "lowers the Frechet distance of ddim at 5 evaluations on karras times on the embedded digits",
          _frechet("ddim", 5, "karras"), quick=False),
    Claim("time-shift", "brings the states' variance nearer to the nominal one", _gap, quick=False),
)  # fmt: skip
