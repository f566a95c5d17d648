"""Claims of fewstep/sampling/sa_solver.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.problems import exact, stochastic_duel
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan


def _corrector(seed: int) -> Outcome:
    problem = exact(VP(), seed)
    ours, theirs = (
        problem.error(plan(VP(), "sa-solver", 12, "log-snr", tau=0.0, predictor_order=2, corrector_order=corrector))
        for corrector in (3, 0)
    )
    return Outcome(
        ours,
        theirs,
        "the predictor alone",
        f"predictor of order 2, corrector of order 3, 12 evaluations, tau = 0, times log-snr, {problem.name}",
        unit="relative end point error",
    )


CLAIMS = (
    Claim(
        "sa-solver",
        "is nearer to the data's distribution than ancestral sampling at 20 evaluations",
        lambda seed: stochastic_duel(VP(), "sa-solver", "ddpm", 20, "log-snr", seed),
    ),
    Claim(
        "sa-solver",
        "is nearer to the data's distribution than dpmpp-2m-sde at 20 evaluations",
        lambda seed: stochastic_duel(VP(), "sa-solver", "dpmpp-2m-sde", 20, "log-snr", seed),
    ),
    Claim("sa-solver", "without noise the corrector pays, at no evaluation more", _corrector),
)
