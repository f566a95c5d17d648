"""Running a search method on a Job, whole, cut short and taken up again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import find
from fewstep.searching.job import Job, OutOfBudget


@pytest.fixture(scope="module", autouse=True)
def _few(few_candidates):
    """Nothing in this room's tests depends on how many candidates there are."""


def run_search(
    method: str,
    model: Denoiser,
    nfe: int,
    folder: Path | None = None,
    evaluations: int | None = None,
    noises: int = 32,
    **options: Any,
) -> tuple[Job, bool]:
    """The job after the method has run, and whether it ended by itself."""
    job = Job(
        model,
        nfe,
        method=method,
        noises=noises,
        reference_nfe=40,
        evaluations=evaluations,
        folder=folder,
        settings=options,
    )
    with job, torch.no_grad():
        try:
            find(method, room="searching")(job, **options)
        except OutOfBudget:
            return job, False
    return job, True


def check_resuming(
    method: str, model: Denoiser, nfe: int, folder: Path, pieces: tuple[int, ...], **options: Any
) -> Job:
    """Run the search in pieces of so many evaluations, each taking it up where it was stopped, and then to its end; it
    must end as the unbroken one.

    The last piece must leave a plan, the best of those offered by then.
    """
    whole, finished = run_search(method, model, nfe, **options)
    assert finished and whole.best is not None
    scores = [score for _, score in whole.history]
    spent = 0
    for piece in pieces:
        job, finished = run_search(method, model, nfe, folder, spent + piece, **options)
        assert not finished, f"it ends within {spent + piece} evaluations; unbroken it takes {whole.evaluations}"
        spent = job.evaluations
    assert job.best is not None and job.score == [score for _, score in job.history][-1]
    assert [score for _, score in job.history] == scores[: len(job.history)]
    again, finished = run_search(method, model, nfe, folder, **options)
    assert finished and again.best is not None
    assert again.best.to_json() == whole.best.to_json()
    assert again.score == whole.score and [score for _, score in again.history] == scores
    return whole


@pytest.fixture(scope="session")
def searched() -> Callable[..., tuple[Job, bool]]:
    return run_search


@pytest.fixture(scope="session")
def resumed() -> Callable[..., Job]:
    return check_resuming
