"""Claims of fewstep/searching/olss.py."""

from __future__ import annotations

from claims.common import ENDPOINT, VP, Claim, Outcome, compared
from claims.problems import problem
from claims.searches import contest, found

RIVALS = [(solver, rule) for solver in ("ddim", "dpmpp-2m") for rule in ("log-snr", "karras", "uniform")]


def _planned(seed: int) -> Outcome:
    made = (found(VP(), 8, "olss", seed), found(VP(), 8, "olss", seed, timesteps="uniform"))
    errors = [problem(VP(), seed).error(p) for p in made]
    about = "8 evaluations, 8-component mixture, vp; 64 noises to learn from, 256 unseen"
    return compared(errors, "the same fit on uniform times", about, unit=ENDPOINT)


CLAIMS = (
    *(Claim("olss", f"beats ddim and dpmpp-2m at {nfe} evaluations", contest(VP(), nfe, "olss", RIVALS))
      for nfe in (5, 8, 10)),
    Claim("olss", "beats ddim and dpmpp-2m at 6 evaluations on the embedded digits",
          contest("digits", 6, "olss", RIVALS, noises=32), quick=False),
    Claim("olss", "planned times beat uniform ones at 8 evaluations", _planned),
)  # fmt: skip
