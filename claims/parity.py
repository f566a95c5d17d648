"""Claims that a loaded pipeline draws the pictures of diffusers, which the families share."""

from __future__ import annotations

import functools

from claims.claim import Claim, Outcome
from claims.pipelines import worst


def _same(kind: str, solver: str, seed: int) -> Outcome:
    difference = worst(kind, solver)
    about = f"{kind} with random weights, two prompts, guidance 4, 5 steps of {solver}, float32; the largest difference"
    return Outcome(difference, 1e-4, "a tolerance", about)


def same_pictures(method: str, kind: str) -> tuple[Claim, ...]:
    """One claim a solver, for the pipeline class `kind` that `method` loads."""
    return tuple(
        Claim(
            method,
            f"{solver} draws the pictures of {kind.removesuffix('Pipeline')} in diffusers, guidance included",
            functools.partial(_same, kind, solver),
            quick=False,
        )
        for solver in ("ddim", "dpmpp-2m")
    )
