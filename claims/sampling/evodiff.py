"""Claims of fewstep/sampling/evodiff.py."""

from __future__ import annotations

from claims.common import VP, Claim
from claims.duels import duel, stochastic_duel

CLAIMS = (
    *(Claim("evodiff", f"beats dpmpp-2m at {nfe} evaluations", duel(VP(), "evodiff", "dpmpp-2m", nfe, "log-snr"))
      for nfe in (5, 10)),
    *(Claim("evodiff", f"beats dpmpp-2m at {nfe} evaluations on the embedded digits",
            duel("digits", "evodiff", "dpmpp-2m", nfe, "log-snr"), quick=False)
      for nfe in (5, 10)),
    Claim("evodiff", "is nearer to the data's distribution than dpmpp-2m at 8 evaluations",
          stochastic_duel(VP(), "evodiff", "dpmpp-2m", 8, "log-snr")),
)  # fmt: skip
