"""Claims of fewstep/training/experts.py."""

from __future__ import annotations

import functools

from torch import Tensor

from claims.claim import Claim, Outcome, over_seeds
from claims.level_tasks import OPTIONS, SEEDS, STEPS, WHAT, digits, fresh, held_out, plain
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.experts import train_experts


@functools.cache
def _both(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Held-out losses (32,) of the experts, each where it answers; of the first one alone; of one network."""
    made = train_experts(fresh(seed), digits("train"), (0.5,), steps=STEPS // 2, seed=seed, **OPTIONS)
    low, high = (held_out(part) for part in made.denoisers if isinstance(part, NetworkDenoiser))
    joined = low.clone()
    joined[16:] = high[16:]  # the levels are even in t, and the experts meet in the middle
    return joined, low, held_out(plain(seed))


def _against_one(seed: int) -> Outcome:
    return over_seeds(
        lambda number: (float(_both(number)[0].mean()), float(_both(number)[2].mean())),
        SEEDS,
        f"one network, {STEPS} steps",
        f"two experts of {STEPS // 2} steps each; {WHAT} in all",
        unit="held-out loss",
    )


def _near_the_data(seed: int) -> Outcome:
    return over_seeds(
        lambda number: (float(_both(number)[0][:16].mean()), float(_both(number)[2][:16].mean())),
        SEEDS,
        f"one network, {STEPS} steps",
        f"the texture expert in its half of the times, {STEPS // 2} steps; {WHAT} in all",
        unit="held-out loss",
    )


def _in_the_noise(seed: int) -> Outcome:
    return over_seeds(
        lambda number: (float(_both(number)[0][16:].mean()), float(_both(number)[2][16:].mean())),
        SEEDS,
        f"one network, {STEPS} steps",
        f"the structure expert in its half of the times, {STEPS // 2} steps; {WHAT} in all",
        unit="held-out loss",
    )


CLAIMS = (
    Claim("train-experts", "two at half the cost each are no worse than one network", _against_one, quick=False),
    Claim("train-experts", "near the data, an expert at half the cost beats one network", _near_the_data, quick=False),
    Claim("train-experts", "in the noise, an expert at half the cost beats one network", _in_the_noise, quick=False),
)
