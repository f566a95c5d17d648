"""Claims of fewstep/sampling/alignment.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome
from claims.problems import exact
from fewstep.processes.vp import VP
from fewstep.sampling.alignment import align
from fewstep.sampling.build import plan


def _halfway(seed: int) -> Outcome:
    """Nothing is fitted: every network time lies half a step on, in log-SNR."""
    process, problem = VP(), exact(VP(), seed)
    made = plan(process, "ddim", 12, "log-snr", end="min")
    middle = [
        process.time((process.log_snr(a) + process.log_snr(b)) / 2)
        for a, b in zip(made.times, made.times[1:], strict=False)
    ]
    x, y = (p(problem.model, problem.noise, dtype=torch.float64) for p in (align(made, middle), made))
    ours, theirs = (float((v - problem.reference).norm(dim=1).mean()) for v in (x, y))
    norm = float(problem.reference.norm(dim=1).mean())
    return Outcome(
        ours / norm,
        theirs / norm,
        "ddim, 12 evaluations",
        "12 evaluations on log-snr times to t_min, 8-component mixture, vp, 256 noises",
        unit="relative end point error",
    )


CLAIMS = (Claim("timestep-alignment", "telling the network the middle of each step lowers ddim's error", _halfway),)
