"""Claims of fewstep/processes/ve.py."""

from __future__ import annotations

import math

from claims.claim import Claim, Outcome
from claims.problems import clock, exact, identities
from fewstep.processes.ve import EDM, VE
from fewstep.sampling.build import plan
from fewstep.timesteps.grid import make_times

SIGMAS = (0.01, 50.0)
EVALUATIONS = 20


def _geometric(seed: int) -> Outcome:
    t = clock(VE(*SIGMAS))
    wanted = math.log(SIGMAS[0]) + t * math.log(SIGMAS[1] / SIGMAS[0])
    error = float((VE(*SIGMAS).sigma(t).log() - wanted).abs().max())
    return identities(VE(*SIGMAS), error, "log sigma against a line in t")


def _sigma_is_time(seed: int) -> Outcome:
    t = clock(EDM())
    return identities(EDM(), float((EDM().sigma(t) / t - 1).abs().max()), "sigma against t")


def _straighter(seed: int) -> Outcome:
    """The same noise levels for both, so that only the clock differs in which Euler's step is straight."""
    levels = [t for t in make_times(EDM(*SIGMAS), EVALUATIONS, "karras") if t > 0]
    errors = []
    for process in (EDM(*SIGMAS), VE(*SIGMAS)):
        times = [process.t_max, *(process.time(-math.log(s)) for s in levels[1:-1]), process.t_min, process.t_zero]
        errors.append(exact(process, seed).error(plan(process, "euler", timesteps=times)))
    return Outcome(
        errors[0],
        errors[1],
        "VE's clock, sigma geometric in time",
        f"Euler, {EVALUATIONS} evaluations at the same sigmas (karras, 50 to 0.01, then 0),"
        " 8-component mixture, 256 noises",
        unit="relative end point error",
    )


CLAIMS = (
    Claim("ve", "its formulas agree with each other", _geometric),
    Claim("edm", "its formulas agree with each other", _sigma_is_time),
    Claim("edm", "paths are straighter in sigma than in log sigma: Euler's error is lower", _straighter),
)
