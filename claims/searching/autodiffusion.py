"""Claims of fewstep/searching/autodiffusion.py."""

from __future__ import annotations

import functools

import numpy as np
import torch

from claims.claim import Claim, Outcome
from claims.problems import mixture
from fewstep.core.denoiser import Denoiser
from fewstep.core.plan import Plan
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.searching.autodiffusion import Fitness, Times, autodiffusion
from fewstep.searching.candidates import score
from fewstep.searching.job import Job
from fewstep.searching.problem import Problem
from fewstep.searching.reference import solve

NFE, POINTS, UNSEEN = 4, 100, 384
SIZES = {"population": 24, "generations": 4, "children": 12}  # 72 sequences are rated, and as many masks


@functools.cache
def _searched(seed: int) -> tuple[Job, Fitness, Problem]:
    """The embedded digits, rated by the Frechet distance of 128 samples in the classifier's features."""
    from fewstep.hub.models import load

    job = Job(load("digits"), NFE, method="autodiffusion", seed=seed, noises=128, reference_nfe=20)
    with job, torch.no_grad():
        autodiffusion(job, fitness="frechet", features="digits", masks=True, points=POINTS, **SIZES)
        unseen = solve(job.model, seed, 2 * job.noises, UNSEEN, job.reference_nfe, job.dtype)
    return job, Fitness(job.model, "frechet", "digits"), unseen


def _outcome(seed: int, ours: tuple[Plan, Denoiser], theirs: float, against: str, conditions: str) -> Outcome:
    _, fitness, unseen = _searched(seed)
    return Outcome(
        fitness(*ours, unseen),
        theirs,
        against,
        f"{conditions}, ddim, embedded digits; rated on 128 noises, {UNSEEN} unseen",
        unit="Frechet distance, digits' features",
    )


@torch.no_grad()
def _rule(seed: int, rule: str) -> Outcome:
    job, fitness, unseen = _searched(seed)
    assert job.best is not None
    theirs = fitness(plan(job.process, "ddim", NFE, rule), job.model, unseen)
    return _outcome(seed, (job.best, job.model), theirs, f"times {rule}", f"{NFE} evaluations")


@torch.no_grad()
def _random(seed: int) -> Outcome:
    """Random sequences beside the same rules', as many as were rated, the best on the same noises."""
    job, fitness, unseen = _searched(seed)
    times, rng = Times(job, NFE, POINTS), np.random.default_rng([seed, 1000])
    count = len(job.state["times"]["rated"])
    group = times.starts + [times.random(rng) for _ in range(count - len(times.starts))]
    plans = [plan(job.process, "ddim", timesteps=times.times(genome)) for genome in group]
    best = min(plans, key=lambda made: fitness(made, job.model, job.train))
    assert job.best is not None
    return _outcome(
        seed, (job.best, job.model), fitness(best, job.model, unseen), f"random search, {count} sequences as well",
        f"{NFE} evaluations",
    )  # fmt: skip


@torch.no_grad()
def _masked(seed: int) -> Outcome:
    job, fitness, unseen = _searched(seed)
    found = job.result
    assert job.best is not None
    return _outcome(
        seed, (found.plan, found.denoiser(job.model)), fitness(job.best, job.model, unseen),
        "the searched times with every block",
        f"{found.plan.nfe} evaluations of {found.flops / 1e6:.1f} million operations in all,"
        f" against {NFE} of {found.limit / 1e6:.1f}",
    )  # fmt: skip


@torch.no_grad()
def _endpoint(seed: int) -> Outcome:
    """The rival is the best of five rules on the very noises of the verdict."""
    model = mixture(VP())
    job = Job(model, NFE, method="autodiffusion", seed=seed, noises=128, reference_nfe=100)
    with job:
        autodiffusion(job, points=POINTS, **SIZES)
    unseen = solve(model, seed, 256, 256, 100, job.dtype)
    rules = ("karras", "log-snr", "uniform", "quadratic", "short")
    errors = {rule: score(plan(job.process, "ddim", NFE, rule), model, unseen) for rule in rules}
    best = min(errors, key=lambda rule: errors[rule])
    assert job.best is not None
    return Outcome(
        score(job.best, model, unseen),
        errors[best],
        f"the best of {len(rules)} rules ({best})",
        f"{NFE} evaluations, ddim, 8-component mixture, vp; rated on 128 noises, 256 unseen",
        unit="relative end point error",
    )


CLAIMS = (
    Claim(
        "autodiffusion", "beats the best rule's times at 4 evaluations of ddim on the mixture", _endpoint, quick=False
    ),
    *(
        Claim(
            "autodiffusion",
            f"beats {rule} times at 4 evaluations of ddim on the digits",
            functools.partial(_rule, rule=rule),
            quick=False,
        )
        for rule in ("karras", "log-snr")
    ),
    Claim("autodiffusion", "beats random search over the same times on the digits", _random, quick=False),
    Claim("autodiffusion", "blocks left out for more evaluations lower the distance", _masked, quick=False),
)
