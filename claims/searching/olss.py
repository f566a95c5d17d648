"""Claims of fewstep/searching/olss.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.searches import contest, error, search
from fewstep.processes.vp import VP

RIVALS = [(solver, rule) for solver in ("ddim", "dpmpp-2m") for rule in ("log-snr", "karras", "uniform")]


def _planned(seed: int) -> Outcome:
    planned, uniform = search(VP(), 8, "olss", seed), search(VP(), 8, "olss", seed, timesteps="uniform")
    assert planned.best is not None and uniform.best is not None
    return Outcome(
        error(VP(), planned.best, seed),
        error(VP(), uniform.best, seed),
        "the same fit on uniform times",
        "8 evaluations, 8-component mixture, vp; 64 noises to learn from, 256 unseen",
        unit="relative end point error",
    )


CLAIMS = (
    *(
        Claim(
            "olss",
            f"beats ddim and dpmpp-2m at {nfe} evaluations",
            lambda seed, nfe=nfe: contest(VP(), nfe, "olss", RIVALS, seed),
        )
        for nfe in (5, 8, 10)
    ),
    Claim(
        "olss",
        "beats ddim and dpmpp-2m at 6 evaluations on the embedded digits",
        lambda seed: contest(None, 6, "olss", RIVALS, seed, noises=32),
        quick=False,
    ),
    Claim("olss", "planned times beat uniform ones at 8 evaluations", _planned),
)
