"""Claims of fewstep/processes/ouve.py."""

from __future__ import annotations

import math

from claims.bridges import largest, ode_duel
from claims.common import Claim, Outcome
from claims.duels import identities
from claims.problems import clock
from fewstep.processes.ouve import OUVE


def _sde(seed: int) -> Outcome:
    process = OUVE()
    t, ratio = clock(process), process.sigma_max / process.sigma_min
    g2 = 2 * math.log(ratio) * process.sigma_min**2 * ratio ** (2 * t)
    errors = [process.drift(t) + process.gamma, process.diffusion2(t) - g2]
    return identities(process, largest(errors), "drift and g^2 against the paper's")


CLAIMS = (
    Claim("ouve", "its closed-form variance is its SDE's", _sde),
    Claim("ouve", "an exponential solver of order 2 beats Euler at 10 evaluations",
          ode_duel(OUVE(), "dpmpp-2m", "euler", 10, "uniform")),
)  # fmt: skip
