"""Claims of fewstep/sampling/pc.py."""

from __future__ import annotations

from claims.common import VE, VP, Claim
from claims.duels import stochastic_duel

# The evaluations are those of predictor and corrector together: the clean end takes none.
CLAIMS = tuple(
    Claim("pc", f"is nearer to the data's distribution than its predictor alone, {process.name}, {nfe} evaluations",
          stochastic_duel(process, "pc", "ddpm", nfe, "log-snr"), quick=False)
    for process in (VP(), VE()) for nfe in (39, 199)
)  # fmt: skip
