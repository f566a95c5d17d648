"""Claims of fewstep/sampling/evodiff.py."""

from __future__ import annotations

from claims.claim import Claim
from claims.problems import digits, duel, exact, stochastic_duel
from fewstep.processes.vp import VP

CLAIMS = (
    *(
        Claim(
            "evodiff",
            f"beats dpmpp-2m at {nfe} evaluations",
            lambda seed, nfe=nfe: duel(exact(VP(), seed), "evodiff", "dpmpp-2m", nfe, "log-snr"),
        )
        for nfe in (5, 10)
    ),
    *(
        Claim(
            "evodiff",
            f"beats dpmpp-2m at {nfe} evaluations on the embedded digits",
            lambda seed, nfe=nfe: duel(digits(seed), "evodiff", "dpmpp-2m", nfe, "log-snr"),
            quick=False,
        )
        for nfe in (5, 10)
    ),
    Claim(
        "evodiff",
        "is nearer to the data's distribution than dpmpp-2m at 8 evaluations",
        lambda seed: stochastic_duel(VP(), "evodiff", "dpmpp-2m", 8, "log-snr", seed),
    ),
)
