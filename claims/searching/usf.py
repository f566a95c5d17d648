"""Claims of fewstep/searching/usf.py."""

from __future__ import annotations

import functools

import numpy as np
import torch

from claims.common import ENDPOINT, Claim, Outcome, experiment, plan
from claims.problems import Problem
from claims.searches import model_of
from fewstep.searching.candidates import score
from fewstep.searching.job import Job
from fewstep.searching.predictor import Predictor
from fewstep.searching.reference import solve
from fewstep.searching.usf import Space, logs, usf

REFERENCE = 100
SIZES = {"population": 24, "generations": 6, "children": 12}  # 96 schedules are rated
RIVALS = 5  # random searches, whose mean is the rival


@functools.cache
@torch.no_grad()
def _searched(name: str, nfe: int, seed: int) -> tuple[Job, Problem, float]:
    """The job, unseen noises, and its plan's error on them."""
    model, noises, _ = model_of(name)
    job = Job(model, nfe, method="usf", seed=seed, noises=noises, reference_nfe=REFERENCE)
    with job:
        usf(job, **SIZES)
    unseen = solve(job.model, seed, 2 * job.noises, 128, REFERENCE, job.dtype)
    assert job.best is not None
    return job, unseen, score(job.best, job.model, unseen)


@experiment
@torch.no_grad()
def _beats_dpmpp(seed: int, name: str, nfe: int) -> Outcome:
    job, unseen, error = _searched(name, nfe, seed)
    theirs = score(plan(job.process, "dpmpp-2m", nfe=nfe, timesteps="log-snr"), job.model, unseen)
    count = len(job.state["schedules"]["rated"])
    about = f"{nfe} evaluations, {model_of(name)[2]}; {count} schedules rated on {job.noises} noises, as many held out,"
    about += " 128 unseen"
    return Outcome(error, theirs, f"dpmpp-2m, times log-snr, {nfe} evaluations", about, unit=ENDPOINT)


@experiment
@torch.no_grad()
def _beats_random(seed: int, name: str, nfe: int, rivals: int) -> Outcome:
    """Random schedules beside the same uniform ones, as many as were rated, the best on the same noises."""
    job, unseen, error = _searched(name, nfe, seed)
    space, count, errors = Space(job.process, nfe), len(job.state["schedules"]["rated"]), []
    for rival in range(rivals):
        rng, group = np.random.default_rng([seed, 1000 + rival]), space.anchors()
        group += [space.random(rng) for _ in range(count - len(group))]
        best = min(group, key=lambda schedule: score(space.plan(schedule), job.model, job.train))
        errors.append(score(space.plan(best), job.model, unseen))
    against = f"random search, {count} schedules as well" + (f", mean of {rivals}" if rivals > 1 else "")
    about = f"{nfe} evaluations, {model_of(name)[2]}; rated on {job.noises} noises, 128 unseen"
    return Outcome(error, sum(errors) / rivals, against, about, unit=ENDPOINT)


@experiment
@torch.no_grad()
def _tau(seed: int, name: str, nfe: int) -> Outcome:
    """Fitted on half of 96 random schedules; tau on the other half."""
    from scipy.stats import kendalltau

    job = _searched(name, nfe, seed)[0]
    space, rng = Space(job.process, nfe), np.random.default_rng([seed, 2000])
    group = [space.random(rng) for _ in range(96)]
    features = np.array([space.features(schedule) for schedule in group])
    values = logs([score(space.plan(schedule), job.model, job.train) for schedule in group])
    found = kendalltau(Predictor(features[:48], values[:48])(features[48:]), values[48:]).statistic
    about = f"{nfe} evaluations, {model_of(name)[2]}; fitted on 48 random schedules, ranked 48 others"
    return Outcome(float(found), 0.0, "no relation", about, better="high", unit="Kendall's tau")


CLAIMS = (
    *(Claim("usf", f"beats dpmpp-2m at {nfe} evaluations on the {name}", _beats_dpmpp(name, nfe), quick=False)
      for name in ("mixture", "digits") for nfe in (5, 7)),
    *(Claim("usf", f"beats random search over the same schedules at {nfe} evaluations on the {name}",
            _beats_random(name, nfe, rivals), quick=False)
      for name, nfe, rivals in (("mixture", 5, RIVALS), ("mixture", 7, RIVALS), ("digits", 5, 1))),
    *(Claim("usf", f"the predictor ranks schedules it has not seen, on the {name}", _tau(name, 5), quick=False)
      for name in ("mixture", "digits")),
)  # fmt: skip
