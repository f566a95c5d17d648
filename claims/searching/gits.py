"""Claims of fewstep/searching/gits.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome
from claims.problems import digits
from claims.searches import contest
from fewstep.processes.vp import VP
from fewstep.searching.grids import fine_grid
from fewstep.searching.job import Job

RULES = ("karras", "log-snr", "uniform")


def _grids(solver: str, nfe: int, seed: int) -> Outcome:
    return contest(VP(), nfe, "gits", [(solver, rule) for rule in RULES], seed, solver=solver)


def _flat(seed: int) -> Outcome:
    job = Job(digits(seed).model, 8, method="gits", seed=seed, noises=32)
    with torch.no_grad():
        path = torch.stack(job.trajectory(fine_grid(job.process, 61))).double().flatten(2).transpose(0, 1)
    power = torch.linalg.svdvals(path - path.mean(1, keepdim=True)).square()
    return Outcome(
        float((power[:, :3].sum(1) / power.sum(1)).min()),
        0.95,
        "the paper's threshold",
        "the least share over 32 trajectories of 61 states, embedded digits, 64 dimensions",
        better="high",
        unit="share of a trajectory's variance in its first three principal components",
    )


CLAIMS = (
    *(
        Claim(
            "gits",
            f"its grid beats karras, log-snr and uniform times under {solver} at {nfe} evaluations",
            lambda seed, solver=solver, nfe=nfe: _grids(solver, nfe, seed),
        )
        for solver in ("ddim", "dpmpp-2m")
        for nfe in (5, 10)
    ),
    Claim(
        "gits",
        "beats dpmpp-2m on log-snr times at 5 evaluations",
        lambda seed: contest(VP(), 5, "gits", [("dpmpp-2m", "log-snr")], seed),
    ),
    Claim(
        "gits",
        "beats dpmpp-2m on log-snr times at 5 evaluations on the embedded digits",
        lambda seed: contest(None, 5, "gits", [("dpmpp-2m", "log-snr")], seed, noises=32),
        quick=False,
    ),
    Claim("gits", "three principal components hold the digits' trajectories", _flat, quick=False),
)
