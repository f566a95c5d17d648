"""Claims of fewstep/searching/tpe.py."""

from __future__ import annotations

import functools

import torch

from claims.common import ENDPOINT, F64, Claim, Outcome, compared, experiment, plan
from claims.problems import Problem
from claims.searches import model_of
from fewstep.searching.candidates import score
from fewstep.searching.job import Job
from fewstep.searching.reference import solve
from fewstep.searching.tpe import tpe

NFE, TRIALS, UNSEEN = 6, 100, 128


@functools.cache
@torch.no_grad()
def _searched(name: str, seed: int, sampler: str) -> tuple[Job, float]:
    """The job and its plan's error on unseen noises."""
    model, noises, _ = model_of(name)
    job = Job(model, NFE, method="tpe", seed=seed, noises=noises, reference_nfe=100)
    with job:
        tpe(job, trials=TRIALS, sampler=sampler)
        assert job.best is not None
        return job, score(job.best, model, _unseen(name, seed))


@functools.cache
def _unseen(name: str, seed: int) -> Problem:
    model, noises, _ = model_of(name)
    return solve(model, seed, 2 * noises, UNSEEN, 100, F64 if name == "mixture" else torch.float32)


def _about(name: str) -> str:
    _, noises, what = model_of(name)
    return f"{NFE} evaluations, {what}; {TRIALS} trials on {noises} noises, {UNSEEN} unseen"


@experiment
@torch.no_grad()
def _beats_dpmpp(seed: int, name: str) -> Outcome:
    job, error = _searched(name, seed, "tpe")
    theirs = score(plan(job.process, "dpmpp-2m", nfe=NFE, timesteps="log-snr"), job.model, _unseen(name, seed))
    return Outcome(error, theirs, f"dpmpp-2m, times log-snr, {NFE} evaluations", _about(name), unit=ENDPOINT)


@experiment
def _beats_random(seed: int, name: str, runs: int) -> Outcome:
    """The mean of so many searches each."""
    errors = [sum(_searched(name, seed + k, sampler)[1] for k in range(runs)) / runs for sampler in ("tpe", "random")]
    mean = f", mean of {runs} searches each" if runs > 1 else ""
    return compared(errors, f"random search, {TRIALS} trials", _about(name) + mean, unit=ENDPOINT)


CLAIMS = (
    *(Claim("tpe", f"beats dpmpp-2m on log-snr times on the {name}", _beats_dpmpp(name), quick=False)
      for name in ("mixture", "digits")),
    *(Claim("tpe", f"beats random search over the same space on the {name}", _beats_random(name, runs), quick=False)
      for name, runs in (("mixture", 4), ("digits", 1))),
)  # fmt: skip
