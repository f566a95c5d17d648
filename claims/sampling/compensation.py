"""Claims of fewstep/sampling/compensation.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome
from claims.problems import exact
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.compensation import compensate, updates


def _nothing(seed: int) -> Outcome:
    problem, worst = exact(VP(), seed), 0.0
    for solver in ("unipc-2", "unipc-3", "dpmpp-2m", "vab-3"):
        made = plan(VP(), solver, 8)
        same = compensate(made, [1.0] * len(updates(made)))
        x, y = (p(problem.model, problem.noise, dtype=torch.float64) for p in (made, same))
        worst = max(worst, float((x != y).sum()))
    return Outcome(
        worst,
        0.5,
        "no value at all",
        "unipc-2, unipc-3, dpmpp-2m and vab-3, 8 steps, 8-component mixture, vp, 256 noises",
        unit="values that differ",
    )


CLAIMS = (Claim("dynamic-compensation", "a ratio of 1 changes no bit", _nothing),)
