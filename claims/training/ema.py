"""Claims of fewstep/training/ema.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.short_run import STEPS, held_out, samples, trained
from fewstep.data.digits import load
from fewstep.metrics.frechet import frechet


def _loss(seed: int) -> Outcome:
    state = trained("unet", seed)
    return Outcome(
        held_out(state),
        held_out(state, averaged=False),
        "the last weights",
        f"unet, {STEPS} steps of 64 digits at a constant rate, decay 0.99",
        unit="held-out loss",
    )


def _samples(seed: int) -> Outcome:
    state, real = trained("unet", seed), load("train")[0]
    ours, theirs = (frechet(samples(model.eval(), 1000, seed), real) for model in (state.averaged(), state.denoiser))
    return Outcome(
        ours.value,
        theirs.value,
        "the last weights",
        f"unet, {STEPS} steps of 64 digits at a constant rate, decay 0.99; 1000 samples, 10 evaluations of dpmpp-2m;"
        f" real against real {ours.floor:.2g}",
        unit="Frechet distance in pixels",
    )


CLAIMS = (
    Claim("ema", "averaged weights have a lower held-out loss than the last ones", _loss, quick=False),
    Claim("ema", "averaged weights sample better than the last ones", _samples, quick=False),
)
