"""Claims of fewstep/sampling/sa_solver.py."""

from __future__ import annotations

from claims.common import ENDPOINT, VP, Claim, Outcome, compared, plan
from claims.duels import stochastic_duel
from claims.problems import problem


def _corrector(seed: int) -> Outcome:
    on, options = problem(VP(), seed), {"tau": 0.0, "predictor_order": 2}
    errors = [on.error(plan(VP(), "sa-solver", 12, "log-snr", corrector_order=c, **options)) for c in (3, 0)]
    about = f"predictor of order 2, corrector of order 3, 12 evaluations, tau = 0, times log-snr, {on.name}"
    return compared(errors, "the predictor alone", about, unit=ENDPOINT)


CLAIMS = (
    *(Claim("sa-solver", f"is nearer to the data's distribution than {name} at 20 evaluations",
            stochastic_duel(VP(), "sa-solver", rival, 20, "log-snr"))
      for rival, name in (("ddpm", "ancestral sampling"), ("dpmpp-2m-sde", "dpmpp-2m-sde"))),
    Claim("sa-solver", "without noise the corrector pays, at no evaluation more", _corrector),
)  # fmt: skip
