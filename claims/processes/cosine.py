"""Claims of fewstep/processes/cosine.py."""

from __future__ import annotations

from claims.common import VP, Claim, Cosine, Outcome, compared
from claims.duels import on_circle, processes
from claims.problems import clock


def _spread(seed: int) -> Outcome:
    """Nichol and Dhariwal, section 3.2: the linear table's last quarter is almost pure noise, and wasted."""
    share = [float((p.alpha(clock(p)) ** 2 < 0.01).double().mean()) for p in (Cosine(), VP())]
    return compared(share, "VP with linear beta", "times with alpha^2 below 0.01", unit="share of the clock")


CLAIMS = (
    Claim("cosine", "its formulas agree with each other", on_circle(Cosine())),
    Claim("cosine", "spends less of its clock on almost pure noise than a linear beta", _spread),
    Claim("cosine", "equal steps in time serve ddim better than under a linear beta, at 10 evaluations",
          processes(Cosine(), VP(), "ddim", 10, "VP with linear beta")),
)  # fmt: skip
