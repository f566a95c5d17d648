"""Claims of the adaptor that learns what the inside of a UNet would have said: its error on runs that it never saw."""

from __future__ import annotations

from claims.caches import asked, fresh, model_of, steps_of, words
from claims.caching.clockwork import ABOUT, NAME, NOISES, PERIOD, SOLVER, STEPS, TRAINED, WIDTH, N, fitted
from claims.common import Outcome, compared, slow, thrice
from fewstep.training.clockwork import recorded


def _feature(seed: int) -> Outcome:
    made = steps_of(NAME, SOLVER, STEPS)
    kept, shallow, noise, inside = recorded(model_of(NAME), made, fresh(NAME, seed, N), PERIOD, 1, asked(NAME, N))
    found = fitted(seed).adaptor(kept, shallow, noise)
    figures = [float((one - inside).norm() / inside.norm()) for one in (found, kept)]
    about = f"{words(NAME, N)}, {ABOUT}; width {WIDTH}, {TRAINED} steps on {NOISES} other noises"
    return compared(figures, "the kept feature", about, unit="relative error of the inside's feature")


CLAIMS = (slow("clockwork-adaptor", "errs less on fresh noises than the kept feature", thrice(_feature)),)
