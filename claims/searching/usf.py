"""Claims of fewstep/searching/usf.py."""

from __future__ import annotations

import functools

import numpy as np
import torch

from claims.claim import Claim, Outcome
from claims.problems import mixture
from fewstep.core.denoiser import Denoiser
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.searching.candidates import score
from fewstep.searching.job import Job
from fewstep.searching.predictor import Predictor
from fewstep.searching.reference import solve
from fewstep.searching.usf import Space, logs, usf

REFERENCE = 100
SIZES = {"population": 24, "generations": 6, "children": 12}  # 96 schedules are rated
RIVALS = 5  # random searches, whose mean is the rival


def _model(name: str) -> tuple[Denoiser, int, str]:
    """A model, noises to rate on, and its description."""
    if name == "mixture":
        return mixture(VP()), 64, "8-component mixture, vp"
    from fewstep.hub.models import load

    return load("digits"), 32, "embedded digits"


@functools.cache
def _searched(name: str, nfe: int, seed: int) -> Job:
    model, noises, _ = _model(name)
    job = Job(model, nfe, method="usf", seed=seed, noises=noises, reference_nfe=REFERENCE)
    with job, torch.no_grad():
        usf(job, **SIZES)
    return job


@torch.no_grad()
def _beats_dpmpp(name: str, nfe: int, seed: int) -> Outcome:
    job = _searched(name, nfe, seed)
    unseen = solve(job.model, seed, 2 * job.noises, 128, REFERENCE, job.dtype)
    assert job.best is not None
    return Outcome(
        score(job.best, job.model, unseen),
        score(plan(job.process, "dpmpp-2m", nfe=nfe, timesteps="log-snr"), job.model, unseen),
        f"dpmpp-2m, times log-snr, {nfe} evaluations",
        f"{nfe} evaluations, {_model(name)[2]}; {len(job.state['schedules']['rated'])} schedules rated on {job.noises}"
        f" noises, as many held out, 128 unseen",
        unit="relative end point error",
    )


@torch.no_grad()
def _beats_random(name: str, nfe: int, seed: int, rivals: int) -> Outcome:
    """Random schedules beside the same uniform ones, as many as were rated, the best on the same noises."""
    job = _searched(name, nfe, seed)
    space, count = Space(job.process, nfe), len(job.state["schedules"]["rated"])
    unseen = solve(job.model, seed, 2 * job.noises, 128, REFERENCE, job.dtype)
    errors = []
    for rival in range(rivals):
        rng = np.random.default_rng([seed, 1000 + rival])
        group = space.anchors()
        group += [space.random(rng) for _ in range(count - len(group))]
        best = min(group, key=lambda schedule: score(space.plan(schedule), job.model, job.train))
        errors.append(score(space.plan(best), job.model, unseen))
    assert job.best is not None
    return Outcome(
        score(job.best, job.model, unseen),
        sum(errors) / rivals,
        f"random search, {count} schedules as well" + (f", mean of {rivals}" if rivals > 1 else ""),
        f"{nfe} evaluations, {_model(name)[2]}; rated on {job.noises} noises, 128 unseen",
        unit="relative end point error",
    )


@torch.no_grad()
def _tau(name: str, nfe: int, seed: int) -> Outcome:
    """Fitted on half of 96 random schedules; tau on the other half."""
    from scipy.stats import kendalltau

    job = _searched(name, nfe, seed)
    space, rng = Space(job.process, nfe), np.random.default_rng([seed, 2000])
    group = [space.random(rng) for _ in range(96)]
    features = np.array([space.features(schedule) for schedule in group])
    values = logs([score(space.plan(schedule), job.model, job.train) for schedule in group])
    found = kendalltau(Predictor(features[:48], values[:48])(features[48:]), values[48:]).statistic
    return Outcome(
        float(found),
        0.0,
        "no relation",
        f"{nfe} evaluations, {_model(name)[2]}; fitted on 48 random schedules, ranked 48 others",
        better="high",
        unit="Kendall's tau",
    )


CLAIMS = (
    *(
        Claim(
            "usf",
            f"beats dpmpp-2m at {nfe} evaluations on the {name}",
            functools.partial(_beats_dpmpp, name, nfe),
            quick=False,
        )
        for name, nfe in (("mixture", 5), ("mixture", 7), ("digits", 5), ("digits", 7))
    ),
    *(
        Claim(
            "usf",
            f"beats random search over the same schedules at {nfe} evaluations on the {name}",
            functools.partial(_beats_random, name, nfe, rivals=rivals),
            quick=False,
        )
        for name, nfe, rivals in (("mixture", 5, RIVALS), ("mixture", 7, RIVALS), ("digits", 5, 1))
    ),
    *(
        Claim(
            "usf",
            f"the predictor ranks schedules it has not seen, on the {name}",
            functools.partial(_tau, name, 5),
            quick=False,
        )
        for name in ("mixture", "digits")
    ),
)
