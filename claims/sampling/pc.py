"""Claims of fewstep/sampling/pc.py."""

from __future__ import annotations

from claims.claim import Claim
from claims.problems import stochastic_duel
from fewstep.processes.ve import VE
from fewstep.processes.vp import VP

CLAIMS = tuple(
    Claim(
        "pc",
        f"is nearer to the data's distribution than its predictor alone, {process.name}, {nfe} evaluations",
        lambda seed, process=process, nfe=nfe: stochastic_duel(process, "pc", "ddpm", nfe, "log-snr", seed),
        quick=False,
    )
    for process in (VP(), VE())
    for nfe in (39, 199)  # of predictor and corrector together: the clean end takes none
)
