"""Running a search for a claim: the method alone, and its plan on noises that it has not seen."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from claims.claim import Outcome
from claims.problems import Problem, digits, exact
from fewstep.core.methods import find
from fewstep.core.plan import Plan
from fewstep.core.process import Process
from fewstep.sampling.build import plan
from fewstep.searching.job import Job


def problem(process: Process | None, seed: int) -> Problem:
    """The mixture under a process, or the embedded digits (None): what the outcome is measured on."""
    return digits(seed) if process is None else exact(process, seed)


@functools.cache
def _job(process: Process | None, nfe: int, method: str, seed: int, noises: int, options: tuple[Any, ...]) -> Job:
    job = Job(problem(process, seed).model, nfe, method=method, seed=seed + 1, noises=noises)
    with job, torch.no_grad():
        find(method, room="searching")(job, **dict(options))
    return job


def search(process: Process | None, nfe: int, method: str, seed: int, noises: int = 64, **options: Any) -> Job:
    """The finished job of a method on a stream of noises of its own: `noises` to learn from, as many to choose on."""
    return _job(process, nfe, method, seed, noises, tuple(sorted(options.items())))


def error(process: Process | None, made: Plan, seed: int) -> float:
    """The relative end point error of a plan on the claim's noises."""
    return problem(process, seed).error(made)


def contest(
    process: Process | None,
    nfe: int,
    method: str,
    rivals: Sequence[tuple[str, str]],
    seed: int,
    noises: int = 64,
    **options: Any,
) -> Outcome:
    """The plan of a search against the best of rivals (solver, rule) at as many evaluations, on unseen noises."""
    where = problem(process, seed)
    job = search(process, nfe, method, seed, noises, **options)
    assert job.best is not None
    theirs = min(
        (where.error(plan(where.model.process, solver, timesteps=rule, nfe=nfe)), f"{solver}, {rule}")
        for solver, rule in rivals
    )
    of = "" if len(rivals) == 1 else f", the best of {len(rivals)}"
    return Outcome(
        where.error(job.best),
        theirs[0],
        f"{theirs[1]}{of}, {nfe} evaluations",
        f"{job.best.name} on {job.best.about.get('timesteps')}, {job.best.nfe} evaluations, {where.name};"
        f" {noises} noises to learn from, {noises} held out, {len(where.noise)} unseen; {job.evaluations} evaluations"
        " to find it",
        unit="relative end point error",
    )
