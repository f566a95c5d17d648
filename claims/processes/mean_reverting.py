"""Claims of fewstep/processes/mean_reverting.py."""

from __future__ import annotations

from claims.bridges import largest, ode_duel
from claims.claim import Claim, Outcome
from claims.problems import clock, identities
from fewstep.processes.mean_reverting import MeanReverting


def _sde(seed: int) -> Outcome:
    """g^2 = 2 spread^2 theta, with theta = -drift."""
    process = MeanReverting()
    t = clock(process)
    return identities(
        process,
        largest([process.diffusion2(t) + 2 * process.spread**2 * process.drift(t)]),
        "g^2 against 2 spread^2 theta",
    )


def _against_euler(nfe: int, seed: int) -> Outcome:
    return ode_duel(MeanReverting(), "dpmpp-2m", "euler", nfe, "uniform", seed)


CLAIMS = (
    Claim("mean-reverting", "its formulas agree with each other and with its SDE", _sde),
    Claim("mean-reverting", "MR Sampler of order 2 beats Euler at 5 evaluations", lambda s: _against_euler(5, s)),
    Claim("mean-reverting", "MR Sampler of order 2 beats Euler at 10 evaluations", lambda s: _against_euler(10, s)),
)
