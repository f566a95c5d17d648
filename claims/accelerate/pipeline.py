"""Claims of fewstep/accelerate/pipeline.py."""

from __future__ import annotations

import functools

from claims.claim import Claim, Outcome
from fewstep.accelerate.pipeline import Accelerated, accelerate
from fewstep.hub.models import load

NOISES, ITERATIONS = 96, 5


@functools.cache
def _digits(seed: int) -> Accelerated:
    return accelerate(load("digits"), 4, noises=NOISES, iterations=ITERATIONS, seed=seed, progress=False)


def _outcome(seed: int, role: str, against: str) -> Outcome:
    found = _digits(seed)
    theirs = min(row["endpoint"] for row in found.rows if row["role"] == role and row["endpoint"] is not None)
    ours = min(row["endpoint"] for row in found.rows if row["role"] in ("learned", "candidate") and row["endpoint"] is not None)
    return Outcome(
        ours,
        theirs,
        against,
        f"embedded digits, 4 evaluations, {NOISES} noises (two fifths unseen, for the verdict), {ITERATIONS} iterations",
        unit="relative end point error",
    )


CLAIMS = (
    Claim(
        "accelerate",
        "4 evaluations land nearer to the reference than 20 of ddim",
        lambda seed: _outcome(seed, "baseline", "ddim, 20 evaluations"),
        quick=False,
    ),
    Claim(
        "accelerate",
        "beats every hand-made plan of 4 evaluations on the embedded digits",
        lambda seed: _outcome(seed, "candidate", "the best hand-made plan"),
        quick=False,
    ),
)
