"""Claims of fewstep/sampling/ancestral.py."""

from __future__ import annotations

from claims.common import VP, Claim
from claims.duels import stochastic_duel

CLAIMS = tuple(
    Claim(method, "is nearer to the data's distribution than ancestral sampling at 20 evaluations",
          stochastic_duel(VP(), method, "ddpm", 20, "log-snr"))
    for method in ("dpm-2-ancestral", "dpmpp-2s-ancestral")
)  # fmt: skip
