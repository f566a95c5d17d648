"""Running a search for a claim: the method alone, and its plan on noises that it has not seen."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from claims.common import ENDPOINT, VP, Denoiser, Outcome, Plan, Process, experiment, plan
from claims.problems import mixture, problem
from fewstep.core.methods import find
from fewstep.hub.models import load
from fewstep.searching.job import Job

Rivals = Sequence[tuple[str, str]]  # solvers and the rules of their times
RULES = ("karras", "log-snr", "uniform")


def model_of(name: str) -> tuple[Denoiser, int, str]:
    """A model, "mixture" or "digits", how many noises to rate plans on, and its description."""
    return (mixture(VP()), 64, "8-component mixture, vp") if name == "mixture" else (load(name), 32, "embedded digits")


@functools.cache
def _job(where: Process | str, nfe: int, method: str, seed: int, noises: int, options: tuple[Any, ...]) -> Job:
    job = Job(problem(where, seed).model, nfe, method=method, seed=seed + 1, noises=noises)
    with job, torch.no_grad():
        find(method, room="searching")(job, **dict(options))
    return job


def search(where: Process | str, nfe: int, method: str, seed: int, noises: int = 64, **options: Any) -> Job:
    """The finished job of a method on a stream of noises of its own: `noises` to learn from, as many to choose on."""
    return _job(where, nfe, method, seed, noises, tuple(sorted(options.items())))


def found(where: Process | str, nfe: int, method: str, seed: int, noises: int = 64, **options: Any) -> Plan:
    """The plan that `search` finds."""
    job = search(where, nfe, method, seed, noises, **options)
    assert job.best is not None
    return job.best


@experiment
def contest(
    seed: int, where: Process | str, nfe: int, method: str, rivals: Rivals, noises: int = 64, **options: Any
) -> Outcome:
    """The plan of a search against the best of rivals (solver, rule) at as many evaluations, on unseen noises."""
    on = problem(where, seed)
    job, best = search(where, nfe, method, seed, noises, **options), found(where, nfe, method, seed, noises, **options)
    plans = {f"{solver}, {rule}": plan(on.model.process, solver, timesteps=rule, nfe=nfe) for solver, rule in rivals}
    error, name = min((on.error(made), name) for name, made in plans.items())
    of = "" if len(rivals) == 1 else f", the best of {len(rivals)}"
    about = f"{best.name} on {best.about.get('timesteps')}, {best.nfe} evaluations, {on.name}; {noises} noises to learn"
    about += f" from, {noises} held out, {len(on.noise)} unseen; {job.evaluations} evaluations to find it"
    return Outcome(on.error(best), error, f"{name}{of}, {nfe} evaluations", about, unit=ENDPOINT)
