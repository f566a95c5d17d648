"""Claims of fewstep/sampling/dpm_solver_v3.py."""

from __future__ import annotations

import functools

import torch

from claims.claim import Claim, Outcome
from claims.problems import Problem, digits, exact, orders
from fewstep.core.process import Process
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.statistics import Statistics, estimate_statistics


@functools.cache
def _of_mixture(process: Process, seed: int) -> Statistics:
    """From 1024 of the mixture's own samples; their seed is another one than that of the claim's noises."""
    return estimate_statistics(exact(process, seed).model, n=1024, points=120, seed=seed + 1000)


@functools.cache
def _of_digits(seed: int) -> Statistics:
    """From 256 of the model's own samples, classes in turn."""
    return estimate_statistics(digits(seed).model, n=256, points=120, seed=seed + 1000, label=torch.arange(256) % 10)


def _duel(problem: Problem, statistics: Statistics, theirs: str, nfe: int) -> Outcome:
    process = problem.model.process
    ours = plan(process, "dpm-solver-v3", nfe, "log-snr", statistics=statistics)
    made = plan(process, theirs, nfe, "log-snr")
    return Outcome(
        problem.error(ours),
        problem.error(made),
        f"{theirs}, {made.nfe} evaluations",
        f"dpm-solver-v3 of order 2, {nfe} evaluations, times log-snr, {problem.name}, {len(problem.noise)} noises;"
        " statistics from samples of other noises",
        unit="relative end point error",
    )


CLAIMS = (
    Claim(
        "dpm-solver-v3", "is of order p + 1 without statistics", lambda seed: orders(VP(), "dpm-solver-v3", seed), False
    ),
    *(
        Claim(
            "dpm-solver-v3",
            f"beats {theirs} at {nfe} evaluations",
            lambda seed, theirs=theirs, nfe=nfe: _duel(exact(VP(), seed), _of_mixture(VP(), seed), theirs, nfe),
            quick=False,
        )
        for theirs, nfe in (("dpmpp-2m", 5), ("unipc-2", 8), ("unipc-2", 10))
    ),
    *(
        Claim(
            "dpm-solver-v3",
            f"beats {theirs} at {nfe} evaluations on the embedded digits",
            lambda seed, theirs=theirs, nfe=nfe: _duel(digits(seed), _of_digits(seed), theirs, nfe),
            quick=False,
        )
        for theirs, nfe in (("dpmpp-2m", 5), ("unipc-2", 8), ("unipc-2", 10))
    ),
)
