"""Claims of fewstep/training/ema.py."""

from __future__ import annotations

from claims.common import Claim, Outcome, compared, frechet
from claims.short_run import STEPS, held_out, samples, trained
from fewstep.data.digits import load

ABOUT = f"unet, {STEPS} steps of 64 digits at a constant rate, decay 0.99"


def _loss(seed: int) -> Outcome:
    losses = [held_out(trained("unet", seed), averaged) for averaged in (True, False)]
    return compared(losses, "the last weights", ABOUT, unit="held-out loss")


def _samples(seed: int) -> Outcome:
    state, real = trained("unet", seed), load("train")[0]
    ours, theirs = (frechet(samples(model.eval(), 1000, seed), real) for model in (state.averaged(), state.denoiser))
    about = f"{ABOUT}; 1000 samples, 10 evaluations of dpmpp-2m; real against real {ours.floor:.2g}"
    return Outcome(ours.value, theirs.value, "the last weights", about, unit="Frechet distance in pixels")


CLAIMS = (
    Claim("ema", "averaged weights have a lower held-out loss than the last ones", _loss, quick=False),
    Claim("ema", "averaged weights sample better than the last ones", _samples, quick=False),
)
