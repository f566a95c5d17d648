"""Claims of fewstep/processes/flow.py."""

from __future__ import annotations

from collections.abc import Callable

from claims.claim import Claim, Outcome
from claims.problems import clock, exact, identities
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan


def _straight_line(seed: int) -> Outcome:
    t = clock(Flow())
    return identities(Flow(), float((Flow().alpha(t) + Flow().sigma(t) - 1).abs().max()), "alpha + sigma against 1")


def _euler(nfe: int) -> Callable[[int], Outcome]:
    def run(seed: int) -> Outcome:
        errors = [exact(p, seed).error(plan(p, "euler", timesteps="uniform", nfe=nfe)) for p in (Flow(), VP())]
        return Outcome(
            errors[0],
            errors[1],
            "VP, each against its own ODE",
            f"Euler, {nfe} uniform steps, 8-component mixture, 256 noises",
            unit="relative end point error",
        )

    return run


CLAIMS = (
    Claim("flow", "its formulas agree with each other", _straight_line),
    Claim("flow", "paths are straighter than VP's: Euler's error at 4 evaluations is lower", _euler(4)),
    Claim("flow", "paths are straighter than VP's: Euler's error at 10 evaluations is lower", _euler(10)),
)
