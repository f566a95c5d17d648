"""Claims of fewstep/training/experts.py."""

from __future__ import annotations

import functools

from torch import Tensor

from claims.common import Claim, Outcome, experiment, over_seeds
from claims.level_tasks import OPTIONS, STEPS, WHAT, digits, held_out, plain, untrained
from claims.trained import NetworkDenoiser
from fewstep.training.experts import train_experts


@functools.cache
def _both(seed: int) -> tuple[Tensor, Tensor]:
    """Held-out losses (32,) of two experts, each where it answers, and of one network."""
    made = train_experts(untrained(seed), digits("train"), (0.5,), steps=STEPS // 2, seed=seed, **OPTIONS)
    low, high = (held_out(part) for part in made.denoisers if isinstance(part, NetworkDenoiser))
    joined = low.clone()
    joined[16:] = high[16:]  # the levels are even in t, and the experts meet in the middle
    return joined, held_out(plain(seed))


@experiment
def _against_one(seed: int, levels: slice, what: str) -> Outcome:
    """The mean loss over some of the levels."""
    against, about = f"one network, {STEPS} steps", f"{what}; {WHAT} in all"
    return over_seeds(
        seed, lambda s: [float(losses[levels].mean()) for losses in _both(s)], against, about, unit="held-out loss"
    )


CLAIMS = (
    Claim("train-experts", "two at half the cost each are no worse than one network",
          _against_one(slice(None), f"two experts of {STEPS // 2} steps each"), quick=False),
    Claim("train-experts", "near the data, an expert at half the cost beats one network",
          _against_one(slice(None, 16), f"the texture expert in its half of the times, {STEPS // 2} steps"),
          quick=False),
    Claim("train-experts", "in the noise, an expert at half the cost beats one network",
          _against_one(slice(16, None), f"the structure expert in its half of the times, {STEPS // 2} steps"),
          quick=False),
)  # fmt: skip
