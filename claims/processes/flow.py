"""Claims of fewstep/processes/flow.py."""

from __future__ import annotations

from claims.common import VP, Claim, Flow
from claims.duels import formulas, processes

CLAIMS = (
    Claim("flow", "its formulas agree with each other",
          formulas(Flow(), lambda t: Flow().alpha(t) + Flow().sigma(t) - 1, "alpha + sigma against 1")),
    *(Claim("flow", f"paths are straighter than VP's: Euler's error at {nfe} evaluations is lower",
            processes(Flow(), VP(), "euler", nfe, "VP"))
      for nfe in (4, 10)),
)  # fmt: skip
