"""Claims of fewstep/sampling/compensation.py."""

from __future__ import annotations

from claims.common import VP, Claim, Outcome, plan
from claims.problems import exact
from fewstep.sampling.compensation import compensate, updates


def _nothing(seed: int) -> Outcome:
    on, worst = exact(VP(), seed), 0.0
    for solver in ("unipc-2", "unipc-3", "dpmpp-2m", "vab-3"):
        made = plan(VP(), solver, 8)
        worst = max(worst, float((on.run(made) != on.run(compensate(made, [1.0] * len(updates(made))))).sum()))
    about = "unipc-2, unipc-3, dpmpp-2m and vab-3, 8 steps, 8-component mixture, vp, 256 noises"
    return Outcome(worst, 0.5, "no value at all", about, unit="values that differ")


CLAIMS = (Claim("dynamic-compensation", "a ratio of 1 changes no bit", _nothing),)
