"""`fewstep compare`: samplers beside each other at several numbers of evaluations, and which of them are worth it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import card, made
from fewstep.core.noise import VERSION
from fewstep.core.sampler import Sampler
from fewstep.data.dataset import Dataset
from fewstep.metrics.endpoint import endpoint_error
from fewstep.metrics.frechet import frechet
from fewstep.sampling.build import plan as make_plan
from fewstep.searching.problem import data_for, run_all
from fewstep.searching.reference import error_estimate, reference_plan, solve

SOLVERS = ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2", "deis-3", "vab-3")
RULES = ("log-snr", "karras", "short")


@dataclass(frozen=True)
class Comparison:
    """`rows`, one a sampler: name, solver, timesteps, asked_nfe, nfe, error, frechet, seconds, pareto, and the plan.

    `pareto` marks those than which no other has both fewer or as many evaluations and less error. `figures` say how
    many noises, the reference's evaluations and its own error.
    """

    rows: list[dict[str, Any]]
    figures: dict[str, Any]


def check_names(solvers: Sequence[str], timesteps: Sequence[str]) -> None:
    """`ValueError` for a solver or rule that is not known."""
    for solver in solvers:
        made("solver", solver, 3)
    for rule in timesteps:
        card(rule, "rule")


@checked
@torch.no_grad()
def compare(
    model: Denoiser,
    nfes: Sequence[int] = (4, 8, 16),
    solvers: Sequence[str] = SOLVERS,
    timesteps: Sequence[str] = RULES,
    *,
    plans: Sequence[Sampler] = (),
    noises: int = 256,
    seed: int = 0,
    reference_nfe: int = 100,
    real: Tensor | None = None,
    data: str | Path | Dataset | None = None,
    advance: Callable[[], None] | None = None,
) -> Comparison:
    """Run every solver on every rule with at most so many evaluations, from the same noises.

    The error is the mean distance from the reference's sample of the same noise over the samples' mean norm; solvers
    that draw noise have none, and are compared by the Frechet distance to `real` images, or to the reference's samples
    where none are given.

    Args:
        plans: others to set beside them: the model's own, searched ones.
        data: where the conditions of the noises come from, row by row, and the real images where none are given. Needed
            by models that take a picture, such as bridges.
        advance: called after each sampler.

    Raises:
        ValueError: an unknown solver or rule, no evaluations to compare at, under 16 noises, a model with no shape.
    """
    check_names(solvers, timesteps)
    if not nfes or not solvers or not timesteps:
        raise ValueError("nothing to compare: give at least one number of evaluations, one solver and one rule")
    if noises < 16:
        raise ValueError(f"noises must be at least 16, got {noises}")
    if model.shape is None:
        raise ValueError("comparing draws noise, so the denoiser needs a shape: set model.shape = (...)")
    given = None if data is None else data_for(model, data)
    problem = solve(model, seed, 0, noises, reference_nfe, torch.float32, given)
    if real is None and given is not None:
        real = given.images
    against = problem.reference if real is None else real

    def row(name: str, plan: Sampler, asked: int) -> dict[str, Any]:
        about, begin = plan.about, time.perf_counter()
        found: dict[str, Any] = {
            "name": name,
            "solver": about.get("solver"),
            "timesteps": about.get("timesteps"),
            "asked_nfe": asked,
            "nfe": plan.nfe,
            "error": None,
            "frechet": None,
            "seconds": None,
            "pareto": False,
            "plan": plan,
        }
        try:
            x = run_all(plan, model, problem.noise, problem.condition, problem.seed, problem.first)
        except ValueError as error:
            if "not finite" not in str(error):
                raise
            return found  # it diverged: no figures
        found["seconds"] = time.perf_counter() - begin
        if not plan.stochastic:
            found["error"] = endpoint_error(x, problem.reference).value
        if noises > x[0].numel():  # a covariance from fewer samples than dimensions says little
            seen = x if real is None else model.decode(x, **problem.condition)
            found["frechet"] = frechet(seen.cpu(), against.cpu()).value
        return found

    rows = [row("reference", reference_plan(model, reference_nfe), reference_nfe)]
    rows[0]["error"] = None  # its distance from itself says nothing
    for plan in plans:
        rows.append(row(plan.name, plan, plan.nfe))
    for nfe in nfes:
        for solver in solvers:
            for rule in timesteps:
                try:
                    made = make_plan(model.process, solver, timesteps=rule, nfe=nfe)
                except ValueError:  # this solver or rule cannot do with so few
                    made = None
                if made is not None:
                    rows.append(row(f"{solver} on {rule}", made, nfe))
                if advance is not None:
                    advance()
    if len(rows) == 1:
        raise ValueError(f"no solver of {', '.join(solvers)} can do with {', '.join(map(str, nfes))} evaluations")
    measured = [r for r in rows if r["error"] is not None]
    for one in measured:
        one["pareto"] = not any(
            other["nfe"] <= one["nfe"] and other["error"] < one["error"] for other in measured if other is not one
        )
    figures = {
        "noises": noises,
        "seed": seed,
        "noise_version": VERSION,
        "reference_nfe": reference_nfe,
        "reference_error": error_estimate(model, problem, reference_nfe),
        "frechet_against": "the reference's samples" if real is None else "real images",
    }
    return Comparison(sorted(rows, key=_order), figures)


def _order(row: dict[str, Any]) -> tuple[int, float, float]:
    """By evaluations allowed, then by error; those without one by their Frechet distance, after the others."""
    infinite = float("inf")
    error = infinite if row["error"] is None else row["error"]
    return row["asked_nfe"], error, infinite if row["frechet"] is None else row["frechet"]
