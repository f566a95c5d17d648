"""Claims of fewstep/training/multiscale.py."""

from __future__ import annotations

import functools
from collections.abc import Callable

from claims.common import Claim, Denoiser, Outcome, arms, experiment
from claims.objectives import ABOUT_DIGITS, digits, digits_distance, digits_x0_error

_coarse = functools.partial(digits_x0_error, log_snr=(1.0, -3.0), side=2)
_distance = functools.partial(digits_distance, nfe=10)


@experiment
def _against_pixels(seed: int, figure: Callable[[Denoiser, int], float], what: str, unit: str) -> Outcome:
    """The loss at three scales against that of single pixels."""
    about = f"{ABOUT_DIGITS}, sides 8, 4 and 2; {what}"
    against = "the error of single pixels"
    return arms(seed, lambda arm, s: figure(digits(arm, s), s), "multiscale", "constant", against, about, unit=unit)


CLAIMS = (
    Claim("multiscale", "learns the coarse content of pictures better at equal steps",
          _against_pixels(_coarse, "held-out digits averaged to 2x2, log(alpha / sigma) from -3 to 1", "error of x0"),
          quick=False),
    Claim("multiscale", "samples digits better at equal steps",
          _against_pixels(_distance, "dpmpp-2m, 10 evaluations, 1000 samples", "Frechet distance in pixels"),
          quick=False),
)  # fmt: skip
