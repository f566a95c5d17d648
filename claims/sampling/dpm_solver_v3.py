"""Claims of fewstep/sampling/dpm_solver_v3.py."""

from __future__ import annotations

import functools

import torch

from claims.common import ENDPOINT, VP, Claim, Outcome, Process, experiment, plan
from claims.duels import orders
from claims.problems import problem
from fewstep.sampling.statistics import Statistics, estimate_statistics

RIVALS = (("dpmpp-2m", 5), ("unipc-2", 8), ("unipc-2", 10))


@functools.cache
def _statistics(where: Process | str, seed: int) -> Statistics:
    """From the model's own samples, 1024 of the mixture or 256 digits; their seed is not that of the claim's noises."""
    n, condition = (256, {"label": torch.arange(256) % 10}) if where == "digits" else (1024, {})
    return estimate_statistics(problem(where, seed).model, n=n, points=120, seed=seed + 1000, **condition)


@experiment
def _duel(seed: int, where: Process | str, theirs: str, nfe: int) -> Outcome:
    on = problem(where, seed)
    ours = plan(on.model.process, "dpm-solver-v3", nfe, "log-snr", statistics=_statistics(where, seed))
    made = plan(on.model.process, theirs, nfe, "log-snr")
    about = f"dpm-solver-v3 of order 2, {nfe} evaluations, times log-snr, {on.about}"
    about += "; statistics from samples of other noises"
    return Outcome(on.error(ours), on.error(made), f"{theirs}, {made.nfe} evaluations", about, unit=ENDPOINT)


CLAIMS = (
    Claim("dpm-solver-v3", "is of order p + 1 without statistics", orders(VP(), "dpm-solver-v3"), quick=False),
    *(Claim("dpm-solver-v3", f"beats {theirs} at {nfe} evaluations", _duel(VP(), theirs, nfe), quick=False)
      for theirs, nfe in RIVALS),
    *(Claim("dpm-solver-v3", f"beats {theirs} at {nfe} evaluations on the embedded digits",
            _duel("digits", theirs, nfe), quick=False)
      for theirs, nfe in RIVALS),
)  # fmt: skip
