"""Claims of the searches that rate many plans."""

from __future__ import annotations

import functools

import numpy as np
import torch

from claims.common import ENDPOINT, F64, VP, Denoiser, Outcome, Plan, compared, experiment, plan, slow
from claims.problems import Problem, mixture
from claims.searching.grids import model_of
from fewstep.hub.models import load
from fewstep.searching.autodiffusion import Fitness, Times, autodiffusion
from fewstep.searching.candidates import score
from fewstep.searching.job import Job
from fewstep.searching.predictor import Predictor
from fewstep.searching.reference import solve
from fewstep.searching.tpe import tpe
from fewstep.searching.usf import Space, logs, usf

NFE, POINTS, UNSEEN = 4, 100, 384
SIZES = {"population": 24, "generations": 4, "children": 12}  # 72 sequences are rated, and as many masks
TPE_NFE, TRIALS, TPE_UNSEEN = 6, 100, 128
RIVALS = 5  # random searches, whose mean is the rival


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


@functools.cache
def _unseen(name: str, seed: int) -> Problem:
    model, noises, _ = model_of(name)
    return solve(model, seed, 2 * noises, TPE_UNSEEN, 100, F64 if name == "mixture" else torch.float32)


@functools.cache
@torch.no_grad()
def _trials(name: str, seed: int, sampler: str) -> tuple[Job, float]:
    """The job and its plan's error on unseen noises."""
    model, noises, _ = model_of(name)
    job = Job(model, TPE_NFE, method="tpe", seed=seed, noises=noises, reference_nfe=100)
    with job:
        tpe(job, trials=TRIALS, sampler=sampler)
        assert job.best is not None
        return job, score(job.best, model, _unseen(name, seed))


@experiment
@torch.no_grad()
def _tpe(seed: int, name: str, runs: int, rival: str) -> Outcome:
    """Against another sampler of the same space, the mean of so many searches each, or against a solver."""
    model, noises, what = model_of(name)
    about = f"{TPE_NFE} evaluations, {what}; {TRIALS} trials on {noises} noises, {TPE_UNSEEN} unseen"
    if rival == "random":
        errors = [sum(_trials(name, seed + k, way)[1] for k in range(runs)) / runs for way in ("tpe", rival)]
        about += f", mean of {runs} searches each" if runs > 1 else ""
        return compared(errors, f"random search, {TRIALS} trials", about, unit=ENDPOINT)
    job, error = _trials(name, seed, "tpe")
    theirs = score(plan(job.process, rival, nfe=TPE_NFE, timesteps="log-snr"), model, _unseen(name, seed))
    return Outcome(error, theirs, f"{rival}, times log-snr, {TPE_NFE} evaluations", about, unit=ENDPOINT)


@functools.cache
@torch.no_grad()
def _schedules(name: str, nfe: int, seed: int) -> tuple[Job, Problem, float]:
    """The job, unseen noises, and its plan's error on them."""
    model, noises, _ = model_of(name)
    job = Job(model, nfe, method="usf", seed=seed, noises=noises, reference_nfe=100)
    with job:
        usf(job, population=24, generations=6, children=12)  # 96 schedules are rated
    unseen = solve(job.model, seed, 2 * job.noises, 128, 100, job.dtype)
    assert job.best is not None
    return job, unseen, score(job.best, job.model, unseen)


@experiment
@torch.no_grad()
def _beats_dpmpp(seed: int, name: str, nfe: int) -> Outcome:
    job, unseen, error = _schedules(name, nfe, seed)
    theirs = score(plan(job.process, "dpmpp-2m", nfe=nfe, timesteps="log-snr"), job.model, unseen)
    count = len(job.state["schedules"]["rated"])
    about = f"{nfe} evaluations, {model_of(name)[2]}; {count} schedules rated on {job.noises} noises, as many held out,"
    about += " 128 unseen"
    return Outcome(error, theirs, f"dpmpp-2m, times log-snr, {nfe} evaluations", about, unit=ENDPOINT)


@experiment
@torch.no_grad()
def _beats_random(seed: int, name: str, nfe: int, rivals: int) -> Outcome:
    """Random schedules beside the same uniform ones, as many as were rated, the best on the same noises."""
    job, unseen, error = _schedules(name, nfe, seed)
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

    job = _schedules(name, nfe, seed)[0]
    space, rng = Space(job.process, nfe), np.random.default_rng([seed, 2000])
    group = [space.random(rng) for _ in range(96)]
    features = np.array([space.features(schedule) for schedule in group])
    values = logs([score(space.plan(schedule), job.model, job.train) for schedule in group])
    found = kendalltau(Predictor(features[:48], values[:48])(features[48:]), values[48:]).statistic
    about = f"{nfe} evaluations, {model_of(name)[2]}; fitted on 48 random schedules, ranked 48 others"
    return Outcome(float(found), 0.0, "no relation", about, better="high", unit="Kendall's tau")


CLAIMS = (
    slow("autodiffusion", "beats the best rule's times at 4 evaluations of ddim on the mixture", _endpoint),
    *(slow("autodiffusion", f"beats {rule} times at 4 evaluations of ddim on the digits", _rule(rule))
      for rule in ("karras", "log-snr")),
    slow("autodiffusion", "beats random search over the same times on the digits", _random),
    slow("autodiffusion", "blocks left out for more evaluations lower the distance", _masked),
    *(slow("tpe", f"beats dpmpp-2m on log-snr times on the {name}", _tpe(name, 1, "dpmpp-2m"))
      for name in ("mixture", "digits")),
    *(slow("tpe", f"beats random search over the same space on the {name}", _tpe(name, runs, "random"))
      for name, runs in (("mixture", 4), ("digits", 1))),
    *(slow("usf", f"beats dpmpp-2m at {nfe} evaluations on the {name}", _beats_dpmpp(name, nfe))
      for name in ("mixture", "digits") for nfe in (5, 7)),
    *(slow("usf", f"beats random search over the same schedules at {nfe} evaluations on the {name}",
           _beats_random(name, nfe, rivals))
      for name, nfe, rivals in (("mixture", 5, RIVALS), ("mixture", 7, RIVALS), ("digits", 5, 1))),
    *(slow("usf", f"the predictor ranks schedules it has not seen, on the {name}", _tau(name, 5))
      for name in ("mixture", "digits")),
)  # fmt: skip
