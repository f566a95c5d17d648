"""Claims of fewstep/training/pairwise.py."""

from __future__ import annotations

import copy
import functools

from torch import Tensor

from claims.claim import Claim, Outcome, over_seeds
from claims.tuning import STUDENT_TIMES, class_distance, data, detail, heavy, in_turn, labels, student, student_samples
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.fit import fit, rows_of
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.pairwise import pairwise

STEPS, SAMPLES = 60, 300


def _measured(model: NetworkDenoiser, seed: int) -> tuple[float, float, float]:
    """Share of the preferred, distance from the class's digits, energy of the high frequencies."""
    x, label = student_samples(model, SAMPLES, 700 + seed), in_turn(SAMPLES)
    return float(heavy(x, label).mean()), class_distance(x, label), detail(x)


@functools.cache
def _before() -> tuple[float, float, float]:
    return _measured(student(), 0)


@functools.cache
def _by_pairs(seed: int) -> tuple[float, float, float]:
    model = copy.deepcopy(student())
    times = [*STUDENT_TIMES[:-1], model.process.t_zero]

    def score(x: Tensor, label: Tensor) -> Tensor:
        return heavy(x, label)

    pairwise(
        model, times, steps=STEPS, score=score, conditions=labels, batch=32, lr=3e-4, beta=0.1, last_std=0.5, seed=seed
    )
    return _measured(model, seed)


@functools.cache
def _by_denoising(seed: int) -> tuple[float, float, float]:
    """Trained as diffusion models are, on the digits that are preferred."""
    images, own = data()
    kept = heavy(images, own) > 0
    model = copy.deepcopy(student())
    levels = NoiseLevels(model.process, "log-normal", mean=-1.2, std=1.2)
    draw = rows_of(images[kept], label=own[kept])
    return _measured(fit(model, draw, steps=STEPS, batch=64, lr=3e-4, levels=levels, ema=0.0, seed=seed), seed)


def _compare(part: int, seed: int, unit: str, better: str = "high") -> Outcome:
    seeds = (seed, seed + 1, seed + 2)
    before = _before()
    ours, theirs = ([_by(one)[1] for one in seeds] for _by in (_by_pairs, _by_denoising))
    return over_seeds(
        lambda one: (_by_pairs(one)[part], _by_denoising(one)[part]),
        seeds,
        "denoising on the preferred digits, as many steps",
        "two-step student of the digits; preferred: more ink than the class's median, no more than its most;"
        f" {STEPS} steps of 32 pairs or 64 pictures; the student itself: preferred {before[0]:.2f}, high-frequency"
        f" energy {before[2]:.3f}, distance of a class from its digits {before[1]:.3f}, which becomes"
        f" {sum(ours) / 3:.3f} and {sum(theirs) / 3:.3f}",
        better=better,
        unit=unit,
    )


CLAIMS = (
    Claim(
        "pso",
        "raises the share of preferred samples more than denoising on preferred data",
        lambda seed: _compare(0, seed, f"share of {SAMPLES} samples"),
        quick=False,
    ),
    Claim(
        "pso",
        "keeps more fine detail than denoising on preferred data",
        lambda seed: _compare(2, seed, "energy of the high frequencies"),
        quick=False,
    ),
    Claim(
        "pso",
        "stays as near to the class's digits as denoising on preferred data",
        lambda seed: _compare(1, seed, "sliced Wasserstein distance", "low"),
        quick=False,
    ),
)
