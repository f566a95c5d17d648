"""Claims of fewstep/searching/autodiffusion.py."""

from __future__ import annotations

import functools

import numpy as np
import torch

from claims.common import ENDPOINT, VP, Claim, Denoiser, Outcome, Plan, compared, experiment, plan
from claims.problems import Problem, mixture
from fewstep.hub.models import load
from fewstep.searching.autodiffusion import Fitness, Times, autodiffusion
from fewstep.searching.candidates import score
from fewstep.searching.job import Job
from fewstep.searching.reference import solve

NFE, POINTS, UNSEEN = 4, 100, 384
SIZES = {"population": 24, "generations": 4, "children": 12}  # 72 sequences are rated, and as many masks


@functools.cache
@torch.no_grad()
def _searched(seed: int) -> tuple[Job, Plan, Fitness, Problem]:
    """The embedded digits, rated by the Frechet distance of 128 samples in the classifier's features."""
    job = Job(load("digits"), NFE, method="autodiffusion", seed=seed, noises=128, reference_nfe=20)
    with job:
        autodiffusion(job, fitness="frechet", features="digits", masks=True, points=POINTS, **SIZES)
        unseen = solve(job.model, seed, 2 * job.noises, UNSEEN, job.reference_nfe, job.dtype)
    assert job.best is not None
    return job, job.best, Fitness(job.model, "frechet", "digits"), unseen


@torch.no_grad()
def _outcome(seed: int, ours: tuple[Plan, Denoiser], theirs: Plan, against: str, what: str) -> Outcome:
    """Distances on unseen noises; the rival has all blocks."""
    job, _, fitness, unseen = _searched(seed)
    about = f"{what}, ddim, embedded digits; rated on 128 noises, {UNSEEN} unseen"
    figures = fitness(*ours, unseen), fitness(theirs, job.model, unseen)
    return compared(figures, against, about, unit="Frechet distance, digits' features")


@experiment
def _rule(seed: int, rule: str) -> Outcome:
    job, best, _, _ = _searched(seed)
    theirs = plan(job.process, "ddim", NFE, rule)
    return _outcome(seed, (best, job.model), theirs, f"times {rule}", f"{NFE} evaluations")


@torch.no_grad()
def _random(seed: int) -> Outcome:
    """Random sequences beside the same rules', as many as were rated, the best on the same noises."""
    job, best, fitness, _ = _searched(seed)
    times, rng = Times(job, NFE, POINTS), np.random.default_rng([seed, 1000])
    count = len(job.state["times"]["rated"])
    group = times.starts + [times.random(rng) for _ in range(count - len(times.starts))]
    plans = [plan(job.process, "ddim", timesteps=times.times(genome)) for genome in group]
    theirs = min(plans, key=lambda made: fitness(made, job.model, job.train))
    return _outcome(seed, (best, job.model), theirs, f"random search, {count} sequences as well", f"{NFE} evaluations")


def _masked(seed: int) -> Outcome:
    job, best, _, _ = _searched(seed)
    found = job.result
    what = f"{found.plan.nfe} evaluations of {found.flops / 1e6:.1f} million operations in all, against {NFE} of"
    what += f" {found.limit / 1e6:.1f}"
    return _outcome(seed, (found.plan, found.denoiser(job.model)), best, "the searched times with every block", what)


@torch.no_grad()
def _endpoint(seed: int) -> Outcome:
    """The rival is the best of five rules on the very noises of the verdict."""
    model = mixture(VP())
    job = Job(model, NFE, method="autodiffusion", seed=seed, noises=128, reference_nfe=100)
    with job:
        autodiffusion(job, points=POINTS, **SIZES)
    unseen = solve(model, seed, 256, 256, 100, job.dtype)
    rules = ("karras", "log-snr", "uniform", "quadratic", "short")
    error, best = min((score(plan(job.process, "ddim", NFE, rule), model, unseen), rule) for rule in rules)
    assert job.best is not None
    about = f"{NFE} evaluations, ddim, 8-component mixture, vp; rated on 128 noises, 256 unseen"
    against = f"the best of {len(rules)} rules ({best})"
    return Outcome(score(job.best, model, unseen), error, against, about, unit=ENDPOINT)


CLAIMS = (
    Claim("autodiffusion", "beats the best rule's times at 4 evaluations of ddim on the mixture",
          _endpoint, quick=False),
    *(Claim("autodiffusion", f"beats {rule} times at 4 evaluations of ddim on the digits", _rule(rule), quick=False)
      for rule in ("karras", "log-snr")),
    Claim("autodiffusion", "beats random search over the same times on the digits", _random, quick=False),
    Claim("autodiffusion", "blocks left out for more evaluations lower the distance", _masked, quick=False),
)  # fmt: skip
