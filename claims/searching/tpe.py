"""Claims of fewstep/searching/tpe.py."""

from __future__ import annotations

import functools

import torch

from claims.claim import Claim, Outcome
from claims.problems import mixture
from fewstep.core.denoiser import Denoiser
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.searching.candidates import score
from fewstep.searching.job import Job
from fewstep.searching.problem import Problem
from fewstep.searching.reference import solve
from fewstep.searching.tpe import tpe

NFE, TRIALS, UNSEEN = 6, 100, 128


def _model(name: str) -> tuple[Denoiser, int, str]:
    """A model, noises to rate on, and its description."""
    if name == "mixture":
        return mixture(VP()), 64, "8-component mixture, vp"
    from fewstep.hub.models import load

    return load("digits"), 32, "embedded digits"


@functools.cache
@torch.no_grad()
def _searched(name: str, seed: int, sampler: str) -> tuple[Job, float]:
    """The job and its plan's error on unseen noises."""
    model, noises, _ = _model(name)
    job = Job(model, NFE, method="tpe", seed=seed, noises=noises, reference_nfe=100)
    with job:
        tpe(job, trials=TRIALS, sampler=sampler)
        assert job.best is not None
        return job, score(job.best, model, _unseen(name, seed))


@functools.cache
def _unseen(name: str, seed: int) -> Problem:
    model, noises, _ = _model(name)
    return solve(model, seed, 2 * noises, UNSEEN, 100, torch.float64 if name == "mixture" else torch.float32)


def _conditions(name: str) -> str:
    _, noises, what = _model(name)
    return f"{NFE} evaluations, {what}; {TRIALS} trials on {noises} noises, {UNSEEN} unseen"


@torch.no_grad()
def _beats_dpmpp(name: str, seed: int) -> Outcome:
    job, error = _searched(name, seed, "tpe")
    return Outcome(
        error,
        score(plan(job.process, "dpmpp-2m", nfe=NFE, timesteps="log-snr"), job.model, _unseen(name, seed)),
        f"dpmpp-2m, times log-snr, {NFE} evaluations",
        _conditions(name),
        unit="relative end point error",
    )


def _beats_random(name: str, runs: int, seed: int) -> Outcome:
    """The mean of so many searches each."""
    ours, theirs = (
        sum(_searched(name, seed + k, sampler)[1] for k in range(runs)) / runs for sampler in ("tpe", "random")
    )
    mean = f", mean of {runs} searches each" if runs > 1 else ""
    return Outcome(
        ours, theirs, f"random search, {TRIALS} trials", _conditions(name) + mean, unit="relative end point error"
    )


CLAIMS = (
    *(
        Claim(
            "tpe", f"beats dpmpp-2m on log-snr times on the {name}", functools.partial(_beats_dpmpp, name), quick=False
        )
        for name in ("mixture", "digits")
    ),
    *(
        Claim(
            "tpe",
            f"beats random search over the same space on the {name}",
            functools.partial(_beats_random, name, runs),
            quick=False,
        )
        for name, runs in (("mixture", 4), ("digits", 1))
    ),
)
