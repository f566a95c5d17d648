"""Claims of fewstep/training/pairwise.py."""

from __future__ import annotations

import copy
import functools
from typing import Any

from claims.common import Claim, Outcome, arms, experiment
from claims.trained import NetworkDenoiser, NoiseLevels, fit, rows_of
from claims.tuning import STUDENT_TIMES, class_distance, data, detail, heavy, in_turn, labels, student, student_samples
from fewstep.training.pairwise import pairwise

STEPS, SAMPLES = 60, 300


def _measured(model: NetworkDenoiser, seed: int) -> tuple[float, float, float]:
    """Share of the preferred, distance from the class's digits, energy of the high frequencies."""
    x, label = student_samples(model, SAMPLES, 700 + seed), in_turn(SAMPLES)
    return float(heavy(x, label).mean()), class_distance(x, label), detail(x)


@functools.cache
def _tuned(way: str, seed: int) -> tuple[float, float, float]:
    """By "pairs", or by "denoising" as diffusion models are trained, on the digits that are preferred."""
    model = copy.deepcopy(student())
    if way == "pairs":
        times = [*STUDENT_TIMES[:-1], model.process.t_zero]
        options: dict[str, Any] = {"conditions": labels, "batch": 32, "lr": 3e-4, "beta": 0.1, "last_std": 0.5}
        pairwise(model, times, steps=STEPS, score=lambda x, label: heavy(x, label), seed=seed, **options)
        return _measured(model, seed)
    images, own = data()
    kept = heavy(images, own) > 0
    levels = NoiseLevels(model.process, "log-normal", mean=-1.2, std=1.2)
    draw = rows_of(images[kept], label=own[kept])
    return _measured(fit(model, draw, steps=STEPS, batch=64, lr=3e-4, levels=levels, ema=0.0, seed=seed), seed)


@experiment
def _compare(seed: int, part: int, unit: str, better: str = "high") -> Outcome:
    """One of the three figures of `_measured`."""
    before = _measured(student(), 0)
    ours, theirs = (sum(_tuned(way, s)[1] for s in (seed, seed + 1, seed + 2)) / 3 for way in ("pairs", "denoising"))
    about = "two-step student of the digits; preferred: more ink than the class's median, no more than its most;"
    about += f" {STEPS} steps of 32 pairs or 64 pictures; the student itself: preferred {before[0]:.2f}, high-frequency"
    about += f" energy {before[2]:.3f}, distance of a class from its digits {before[1]:.3f}, which becomes {ours:.3f}"
    about += f" and {theirs:.3f}"
    against = "denoising on the preferred digits, as many steps"
    return arms(seed, lambda way, s: _tuned(way, s)[part], "pairs", "denoising", against, about, better, unit)


CLAIMS = (
    Claim("pso", "raises the share of preferred samples more than denoising on preferred data",
          _compare(0, f"share of {SAMPLES} samples"), quick=False),
    Claim("pso", "keeps more fine detail than denoising on preferred data",
          _compare(2, "energy of the high frequencies"), quick=False),
    Claim("pso", "stays as near to the class's digits as denoising on preferred data",
          _compare(1, "sliced Wasserstein distance", "low"), quick=False),
)  # fmt: skip
