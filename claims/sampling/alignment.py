"""Claims of fewstep/sampling/alignment.py."""

from __future__ import annotations

from itertools import pairwise

from claims.common import ENDPOINT, VP, Claim, Outcome, plan
from claims.problems import exact
from fewstep.sampling.alignment import align


def _halfway(seed: int) -> Outcome:
    """Nothing is fitted: every network time lies half a step on, in log-SNR."""
    process, on = VP(), exact(VP(), seed)
    made = plan(process, "ddim", 12, "log-snr", end="min")
    levels = [process.log_snr(t) for t in made.times]
    middle = [process.time((a + b) / 2) for a, b in pairwise(levels)]
    errors = [float((on.run(p) - on.reference).norm(dim=1).mean()) for p in (align(made, middle), made)]
    norm, about = (
        float(on.reference.norm(dim=1).mean()),
        "12 evaluations on log-snr times to t_min, 8-component mixture, vp, 256 noises",
    )
    return Outcome(errors[0] / norm, errors[1] / norm, "ddim, 12 evaluations", about, unit=ENDPOINT)


CLAIMS = (Claim("timestep-alignment", "telling the network the middle of each step lowers ddim's error", _halfway),)
