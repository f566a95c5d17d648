"""Claims that a loaded pipeline draws the pictures of diffusers, which the families share."""

from __future__ import annotations

from claims.common import Claim, Outcome, experiment
from claims.pipelines import worst


@experiment
def _same(seed: int, kind: str, solver: str) -> Outcome:
    about = f"{kind} with random weights, two prompts, guidance 4, 5 steps of {solver}, float32; the largest difference"
    return Outcome(worst(kind, solver), 1e-4, "a tolerance", about)


def same_pictures(method: str, kind: str) -> tuple[Claim, ...]:
    """One claim a solver, for the pipeline class `kind` that `method` loads."""
    pictures = f"the pictures of {kind.removesuffix('Pipeline')} in diffusers, guidance included"
    return tuple(
        Claim(method, f"{solver} draws {pictures}", _same(kind, solver), quick=False) for solver in ("ddim", "dpmpp-2m")
    )
