"""Claims of fewstep/processes/vp.py."""

from __future__ import annotations

from claims.common import VP, Claim, Outcome
from claims.duels import formulas, on_circle
from claims.problems import clock
from fewstep.processes.vp import SubVP


def _less_variance(seed: int) -> Outcome:
    t = clock(VP())
    saved = 1 - SubVP().sigma(t) ** 2 / VP().sigma(t) ** 2
    about = f"vp and sub-vp, {len(t)} times; {float(saved.mean()):.2g} on average"
    return Outcome(
        float(saved.min()), 0.0, "VP itself", about, better="high", unit="smallest share of VP's variance saved"
    )


CLAIMS = (
    Claim("vp", "its formulas agree with each other", on_circle(VP())),
    Claim("sub-vp", "its formulas agree with each other",
          formulas(SubVP(), lambda t: SubVP().sigma(t) - (1 - SubVP().alpha(t) ** 2), "sigma against 1 - alpha^2")),
    Claim("sub-vp", "has less variance than VP at every time", _less_variance),
)  # fmt: skip
