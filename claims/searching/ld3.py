"""Claims of fewstep/searching/ld3.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.problems import digits, exact
from claims.searches import error, search
from fewstep.core.process import Process
from fewstep.processes.vp import VP
from fewstep.searching.candidates import hand_made


def _best_grid(
    process: Process | None, solver: str, nfe: int, seed: int, noises: int = 64, **options: float
) -> Outcome:
    """The rival is chosen on the noises of the verdict: the hand-made grids' best case."""
    job = search(process, nfe, "ld3", seed, noises, solver=solver, **options)
    assert job.best is not None
    where = digits(seed) if process is None else exact(process, seed)
    grids = list(hand_made(job.process, nfe, [solver]))
    theirs = min((where.error(made), f"{made.about['timesteps']}, to {made.about['end']}") for made in grids)
    return Outcome(
        where.error(job.best),
        theirs[0],
        f"the best of {len(grids)} hand-made grids ({theirs[1]})",
        f"{solver}, {nfe} evaluations, {where.name}; {noises} noises to learn from, {noises} held out,"
        f" {len(where.noise)} unseen; {job.evaluations} evaluations to find it",
        unit="relative end point error",
    )


def _soft(seed: int) -> Outcome:
    soft, hard = (search(VP(), 5, "ld3", seed, solver="dpmpp-2m", radius=radius) for radius in (0.5, 0.0))
    assert soft.best is not None and hard.best is not None
    return Outcome(
        error(VP(), soft.best, seed),
        error(VP(), hard.best, seed),
        "noises held where they are",
        "dpmpp-2m, 5 evaluations, 8-component mixture, vp; 64 noises to learn from, 256 unseen",
        unit="relative end point error",
    )


CLAIMS = (
    *(
        Claim(
            "ld3",
            f"learned times beat every hand-made grid of {solver} at {nfe} evaluations",
            lambda seed, solver=solver, nfe=nfe: _best_grid(VP(), solver, nfe, seed),
            quick=False,
        )
        for solver in ("dpmpp-2m", "unipc-2")
        for nfe in (5, 8)
    ),
    Claim(
        "ld3",
        "learned times beat every hand-made grid of dpmpp-2m at 5 evaluations on the embedded digits",
        lambda seed: _best_grid(None, "dpmpp-2m", 5, seed, 32, iterations=30),
        quick=False,
    ),
    Claim("ld3", "a teacher that may start nearby teaches better at 5 evaluations", _soft, quick=False),
)
