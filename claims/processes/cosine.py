"""Claims of fewstep/processes/cosine.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.problems import clock, exact, identities
from fewstep.processes.cosine import Cosine
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan


def _unit(seed: int) -> Outcome:
    t = clock(Cosine())
    unit = float((Cosine().alpha(t) ** 2 + Cosine().sigma(t) ** 2 - 1).abs().max())
    return identities(Cosine(), unit, "alpha^2 + sigma^2 against 1")


def _spread(seed: int) -> Outcome:
    """Nichol and Dhariwal, section 3.2: the linear table's last quarter is almost pure noise, and wasted."""
    share = []
    for process in (Cosine(), VP()):
        alpha = process.alpha(clock(process))
        share.append(float((alpha**2 < 0.01).double().mean()))
    return Outcome(
        share[0], share[1], "VP with linear beta", "times with alpha^2 below 0.01", unit="share of the clock"
    )


def _ddim(seed: int) -> Outcome:
    errors = [exact(p, seed).error(plan(p, "ddim", timesteps="uniform", nfe=10)) for p in (Cosine(), VP())]
    return Outcome(
        errors[0],
        errors[1],
        "VP with linear beta, each against its own ODE",
        "ddim, 10 uniform steps, 8-component mixture, 256 noises",
        unit="relative end point error",
    )


CLAIMS = (
    Claim("cosine", "its formulas agree with each other", _unit),
    Claim("cosine", "spends less of its clock on almost pure noise than a linear beta", _spread),
    Claim("cosine", "equal steps in time serve ddim better than under a linear beta, at 10 evaluations", _ddim),
)
