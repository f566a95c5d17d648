"""Claims of fewstep/sampling/gradient_estimation.py."""

from __future__ import annotations

from claims.common import EDM, VP, Claim, Outcome, plan, tolerance
from claims.duels import duel, orders
from claims.problems import NOISES, exact


def _is_ddim(seed: int) -> Outcome:
    on = exact(VP(), seed)
    off = on.run(plan(VP(), "gradient-estimation", 10, gamma=1.0)) - on.run(plan(VP(), "ddim", 10))
    about = f"vp, 10 log-snr steps, 8-component mixture, {NOISES} noises"
    return tolerance(float(off.abs().max()), 1e-300, about, "largest difference")


CLAIMS = (
    Claim("gradient-estimation", "is of order 1", orders(EDM(), "gradient-estimation")),
    Claim("gradient-estimation", "gamma = 1 is ddim bit for bit", _is_ddim),
    *(Claim("gradient-estimation", f"beats ddim at {nfe} evaluations",
            duel(EDM(), "gradient-estimation", "ddim", nfe, "log-snr"))
      for nfe in (5, 10)),
)  # fmt: skip
