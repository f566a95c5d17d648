"""`fs.search(model, nfe=8, method="gits")`: find a plan by one method, and judge it beside the hand-made ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import made, methods
from fewstep.core.noise import VERSION
from fewstep.core.plan import Plan
from fewstep.data.dataset import Dataset
from fewstep.searching.candidates import Candidate, hand_made, rank, score
from fewstep.searching.grids import SOLVERS
from fewstep.searching.job import Job, OutOfBudget
from fewstep.searching.problem import data_for
from fewstep.searching.reference import error_estimate, solve

DEFAULT_METHOD = "learned-plan"
SHOWN = 12  # hand-made candidates that are judged on all noises


@dataclass(frozen=True)
class Found:
    """What a search found: the plan, its score on noises that the search never saw, and what it cost.

    `rows` hold the searched plan and the best hand-made ones at as many evaluations, best first: name, solver,
    timesteps, end, nfe, error. `evaluations` counts the network on one sample, the reference's included; `history` is
    how the score on held-out noises fell: (evaluations, score). `result` is what the method gives besides: a policy,
    masks, ratios.
    """

    model: Denoiser
    plan: Plan
    method: str
    rows: list[dict[str, Any]]
    evaluations: int
    seconds: float
    history: list[tuple[int, float]]
    figures: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    finished: bool = True

    @property
    def error(self) -> float:
        """The relative endpoint error of the plan."""
        return next(row["error"] for row in self.rows if row["role"] == "searched")


def search_names() -> tuple[str, ...]:
    """Every method that `search` knows."""
    return tuple(method.name for method in methods("search"))


@checked
def search(
    model: Denoiser,
    nfe: int = 8,
    method: str = DEFAULT_METHOD,
    *,
    seed: int = 0,
    noises: int = 64,
    reference_nfe: int = 100,
    seconds: float | None = None,
    evaluations: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    tell: Callable[[str], None] | None = None,
    data: str | Path | Dataset | None = None,
    **options: Any,
) -> Any:
    """Search a plan of `nfe` evaluations: a `Found`.

    The method "guidance" searches the guidance of the model instead, for a reward: a `FoundGuidance`, as
    `fewstep.searching.guidance.search_guidance`.

    Args:
        method: `fewstep methods --kind search` lists them; `options` are the method's own.
        noises: how many to learn from, and as many again to score on, and to judge on.
        seconds, evaluations: the budget; without it the method stops by itself. When it is spent, the best plan so
            far is returned, with `finished` False.
        folder: keep the search there (`search.json`, `plan.json`): a search that was stopped or killed goes on from
            where it was when the same call is made again, and its best plan so far can be loaded at any time.
        tell: called with a line of text whenever something better is found.
        data: where the conditions of the noises come from, row by row: needed by models that take a picture, such as
            bridges. By default classes in turn, and the captions of the model's own data.

    Raises:
        ValueError: an unknown method or option, a budget below one candidate, a model without a shape, a folder that
            holds another search.
    """
    if method == "guidance":  # its candidates are models, not plans
        if evaluations is not None:
            raise ValueError("the search for guidance is bounded by trials=... and seconds=..., not by evaluations")
        source = None if data is None else data_for(model, data)
        own = {"noises": noises, "seed": seed, "seconds": seconds, "folder": folder, "tell": tell, "data": source}
        return made("guidance-search", "guidance", 1, **options)(model, nfe, **own)
    function = made("search", method, skip=1, **options)
    for what, value in (("nfe", nfe), ("reference_nfe", reference_nfe)):
        if isinstance(value, bool) or int(value) != value or value < 1:
            raise ValueError(f"{what} must be a whole number of at least 1, got {value!r}")
    if isinstance(noises, bool) or int(noises) != noises or noises < 16:
        raise ValueError(f"noises must be a whole number of at least 16, got {noises!r}")
    if model.shape is None:
        raise ValueError("a search draws noise, so the denoiser needs a shape: set model.shape = (...)")
    least = noises * nfe
    if evaluations is not None and evaluations < least:
        raise ValueError(
            f"a budget of {evaluations} evaluations is below one candidate, which takes {least} on {noises} noises"
        )
    if seconds is not None and not seconds > 0:
        raise ValueError(f"a budget of {seconds} seconds is below one candidate: give more than 0")
    job = Job(
        model,
        nfe,
        method=method,
        seed=seed,
        noises=noises,
        reference_nfe=reference_nfe,
        seconds=seconds,
        evaluations=evaluations,
        folder=folder,
        settings=options,
        tell=tell,
        data=None if data is None else data_for(model, data),
    )
    with job, torch.no_grad():
        try:
            function(job)
            finished = True
        except OutOfBudget:
            finished = False
        if job.best is None:
            raise ValueError(
                f"the budget ended before {method!r} had a first plan, after {job.evaluations} evaluations"
                f" ({job.seconds:.0f} s): give it more"
            )
        spent, seconds_spent = job.evaluations, job.seconds
    plan = job.best
    rows = judge(model, plan, job, method)
    figures = {
        "held_out_error": job.score,
        "measure": job.measure,
        "reference_error": error_estimate(model, job.held_out, reference_nfe),
        "noises": noises,
        "seed": seed,
        "noise_version": VERSION,
    }
    return Found(model, plan, method, rows, spent, seconds_spent, job.history, figures, job.result, finished)


@torch.no_grad()
def judge(model: Denoiser, plan: Plan, job: Job, name: str) -> list[dict[str, Any]]:
    """The plan beside the best hand-made ones at as many evaluations, on noises that nobody has seen.

    Those of the solvers that do best in few steps, on every rule, are ranked on the noises that the search scored its
    own on, and the best dozen are judged.
    """
    test = solve(model, job.seed, 2 * job.noises, 2 * job.noises, job.reference_nfe, job.dtype, job.data)
    hand: list[Candidate] = rank(list(hand_made(model.process, plan.nfe, SOLVERS)), model, job.held_out)[:SHOWN]
    rows = [_row("searched", name, plan, score(plan, model, test))]
    for candidate in hand:
        rows.append(_row("hand-made", candidate.name, candidate.plan, score(candidate.plan, model, test)))
    return sorted(rows, key=lambda row: row["error"])


def _row(role: str, name: str, plan: Plan, error: float) -> dict[str, Any]:
    about = plan.about
    return {
        "role": role,
        "name": name,
        "solver": about.get("solver"),
        "timesteps": about.get("timesteps"),
        "end": about.get("end"),
        "nfe": plan.nfe,
        "error": error,
    }
