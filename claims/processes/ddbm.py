"""Claims of fewstep/processes/ddbm.py."""

from __future__ import annotations

from claims.bridges import largest, law_duel
from claims.common import Claim, Outcome
from claims.duels import identities
from claims.problems import clock
from fewstep.processes.ddbm import DDBM


def _base_again(seed: int) -> Outcome:
    """y = alpha_T x0 + sigma_T z makes the bridge its base."""
    process = DDBM()
    base, t = process.base, clock(process)
    s, alpha, sigma = process.base_time(t), base.alpha(base.t_max), base.sigma(base.t_max)
    mean = process.a(t) + process.b(t) * alpha - base.alpha(s)
    variance = process.c(t) ** 2 + (process.b(t) * sigma) ** 2 - base.sigma(s) ** 2
    return identities(process, largest([mean, variance]), "moments with y from the base's end against the base's own")


CLAIMS = (
    Claim("ddbm", "with a random picture it is ordinary diffusion", _base_again),
    Claim("ddbm", "is sampled by any solver: unipc comes nearer the law of x0 given y than ancestral sampling",
          law_duel(DDBM(), "unipc", "ddpm", 10, "log-snr")),
)  # fmt: skip
