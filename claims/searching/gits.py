"""Claims of fewstep/searching/gits.py."""

from __future__ import annotations

import torch

from claims.common import VP, Claim, Outcome
from claims.problems import digits
from claims.searches import RULES, contest
from fewstep.searching.grids import fine_grid
from fewstep.searching.job import Job

RIVAL = [("dpmpp-2m", "log-snr")]


def _flat(seed: int) -> Outcome:
    job = Job(digits(seed).model, 8, method="gits", seed=seed, noises=32)
    with torch.no_grad():
        path = torch.stack(job.trajectory(fine_grid(job.process, 61))).double().flatten(2).transpose(0, 1)
    power = torch.linalg.svdvals(path - path.mean(1, keepdim=True)).square()
    least = float((power[:, :3].sum(1) / power.sum(1)).min())
    about = "the least share over 32 trajectories of 61 states, embedded digits, 64 dimensions"
    unit = "share of a trajectory's variance in its first three principal components"
    return Outcome(least, 0.95, "the paper's threshold", about, better="high", unit=unit)


CLAIMS = (
    *(Claim("gits", f"its grid beats karras, log-snr and uniform times under {solver} at {nfe} evaluations",
            contest(VP(), nfe, "gits", [(solver, rule) for rule in RULES], solver=solver))
      for solver in ("ddim", "dpmpp-2m") for nfe in (5, 10)),
    Claim("gits", "beats dpmpp-2m on log-snr times at 5 evaluations", contest(VP(), 5, "gits", RIVAL)),
    Claim("gits", "beats dpmpp-2m on log-snr times at 5 evaluations on the embedded digits",
          contest("digits", 5, "gits", RIVAL, noises=32), quick=False),
    Claim("gits", "three principal components hold the digits' trajectories", _flat, quick=False),
)  # fmt: skip
