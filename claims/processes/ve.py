"""Claims of fewstep/processes/ve.py."""

from __future__ import annotations

import math

from torch import Tensor

from claims.common import EDM, ENDPOINT, VE, Claim, Outcome, compared, plan
from claims.duels import formulas
from claims.problems import problem
from fewstep.timesteps.grid import make_times

LOW, HIGH = 0.01, 50.0
EVALUATIONS = 20


def _geometric(t: Tensor) -> Tensor:
    return VE(LOW, HIGH).sigma(t).log() - (math.log(LOW) + t * math.log(HIGH / LOW))


def _straighter(seed: int) -> Outcome:
    """The same noise levels for both, so that only the clock differs in which Euler's step is straight."""
    levels = [t for t in make_times(EDM(LOW, HIGH), EVALUATIONS, "karras") if t > 0]
    errors = []
    for process in (EDM(LOW, HIGH), VE(LOW, HIGH)):
        times = [process.t_max, *(process.time(-math.log(s)) for s in levels[1:-1]), process.t_min, process.t_zero]
        errors.append(problem(process, seed).error(plan(process, "euler", timesteps=times)))
    about = f"Euler, {EVALUATIONS} evaluations at the same sigmas (karras, 50 to 0.01, then 0), 8-component mixture,"
    about += " 256 noises"
    return compared(errors, "VE's clock, sigma geometric in time", about, unit=ENDPOINT)


CLAIMS = (
    Claim("ve", "its formulas agree with each other",
          formulas(VE(LOW, HIGH), _geometric, "log sigma against a line in t")),
    Claim("edm", "its formulas agree with each other",
          formulas(EDM(), lambda t: EDM().sigma(t) / t - 1, "sigma against t")),
    Claim("edm", "paths are straighter in sigma than in log sigma: Euler's error is lower", _straighter),
)  # fmt: skip
