"""Claims of fewstep/acceleration/pipeline.py."""

from __future__ import annotations

import functools
import math

from claims.common import ENDPOINT, VP, Claim, Outcome, experiment
from claims.problems import mixture
from fewstep.acceleration.pipeline import Accelerated, accelerate

EVALUATIONS, NOISES, ITERATIONS = 4, 640, 12


@functools.cache
def _mixture(seed: int) -> Accelerated:
    return accelerate(mixture(VP()), EVALUATIONS, noises=NOISES, iterations=ITERATIONS, seed=seed)


@experiment
def _against(seed: int, role: str, against: str) -> Outcome:
    """The returned plan's error on the verdict's noises, beside the best of another role."""
    found = _mixture(seed)
    best: dict[str, float] = {}
    for row in found.rows:
        if row["endpoint"] is not None:
            best[row["role"]] = min(row["endpoint"], best.get(row["role"], math.inf))
    ours = best["learned"] if found.plan.name == "learned" else best["candidate"]
    about = f"{EVALUATIONS} evaluations, 8-component mixture, vp, {found.figures['noises']['verdict']} unseen noises of"
    about += f" {NOISES}, {found.figures['searched']} plans searched, {ITERATIONS} iterations"
    return Outcome(ours, best[role], against, about, unit=ENDPOINT)


CLAIMS = (
    Claim("accelerate", "4 evaluations land nearer to the reference than 20 of ddim on log-SNR times",
          _against("baseline", "ddim, 20 evaluations, times log-snr"), quick=False),
    Claim("accelerate", "returns something better than every hand-made plan of 4 evaluations",
          _against("candidate", "the best hand-made plan"), quick=False),
)  # fmt: skip
