"""Claims of fewstep/training/multiscale.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome, over_seeds
from claims.objectives import ABOUT_DIGITS, SEEDS, digits, digits_distance, digits_x0_error

AGAINST = "the error of single pixels"


def _coarse(seed: int) -> Outcome:
    return over_seeds(
        lambda s: tuple(digits_x0_error(digits(arm, s), s, (1.0, -3.0), side=2) for arm in ("multiscale", "constant")),
        SEEDS,
        AGAINST,
        f"{ABOUT_DIGITS}, sides 8, 4 and 2; held-out digits averaged to 2x2, log(alpha / sigma) from -3 to 1",
        unit="error of x0",
    )


def _samples(seed: int) -> Outcome:
    return over_seeds(
        lambda s: (digits_distance(digits("multiscale", s), s, 10), digits_distance(digits("constant", s), s, 10)),
        SEEDS,
        AGAINST,
        f"{ABOUT_DIGITS}, sides 8, 4 and 2; dpmpp-2m, 10 evaluations, 1000 samples",
        unit="Frechet distance in pixels",
    )


CLAIMS = (
    Claim("multiscale", "learns the coarse content of pictures better at equal steps", _coarse, quick=False),
    Claim("multiscale", "samples digits better at equal steps", _samples, quick=False),
)
