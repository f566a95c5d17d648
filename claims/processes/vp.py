"""Claims of fewstep/processes/vp.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.problems import clock, identities
from fewstep.processes.vp import VP, SubVP


def _vp(seed: int) -> Outcome:
    t = clock(VP())
    unit = float((VP().alpha(t) ** 2 + VP().sigma(t) ** 2 - 1).abs().max())
    return identities(VP(), unit, "alpha^2 + sigma^2 against 1")


def _sub_vp(seed: int) -> Outcome:
    t = clock(SubVP())
    return identities(
        SubVP(), float((SubVP().sigma(t) - (1 - SubVP().alpha(t) ** 2)).abs().max()), "sigma against 1 - alpha^2"
    )


def _less_variance(seed: int) -> Outcome:
    t = clock(VP())
    saved = 1 - SubVP().sigma(t) ** 2 / VP().sigma(t) ** 2
    return Outcome(
        float(saved.min()),
        0.0,
        "VP itself",
        f"vp and sub-vp, {len(t)} times; {float(saved.mean()):.2g} on average",
        better="high",
        unit="smallest share of VP's variance saved",
    )


CLAIMS = (
    Claim("vp", "its formulas agree with each other", _vp),
    Claim("sub-vp", "its formulas agree with each other", _sub_vp),
    Claim("sub-vp", "has less variance than VP at every time", _less_variance),
)
