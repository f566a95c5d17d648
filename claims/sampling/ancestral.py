"""Claims of fewstep/sampling/ancestral.py."""

from __future__ import annotations

from claims.claim import Claim
from claims.problems import stochastic_duel
from fewstep.processes.vp import VP

CLAIMS = (
    Claim(
        "dpm-2-ancestral",
        "is nearer to the data's distribution than ancestral sampling at 20 evaluations",
        lambda seed: stochastic_duel(VP(), "dpm-2-ancestral", "ddpm", 20, "log-snr", seed),
    ),
    Claim(
        "dpmpp-2s-ancestral",
        "is nearer to the data's distribution than ancestral sampling at 20 evaluations",
        lambda seed: stochastic_duel(VP(), "dpmpp-2s-ancestral", "ddpm", 20, "log-snr", seed),
    ),
)
