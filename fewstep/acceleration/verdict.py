"""The verdict: every sampler on noises that neither search nor learning has seen."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.sampler import Sampler
from fewstep.data.spec import Dataset
from fewstep.metrics.endpoint import endpoint_error
from fewstep.metrics.frechet import frechet
from fewstep.sampling.build import plan as make_plan
from fewstep.searching.candidates import FINALISTS, Candidate
from fewstep.searching.problem import Problem, own_data, run_all
from fewstep.searching.reference import reference_plan


@dataclass(frozen=True)
class _Real:
    """What the samples' distribution is compared with, and whether that is data: then the samples are decoded first."""

    images: Tensor
    name: str
    data: bool


def _real(model: Denoiser, problem: Problem, data: Dataset | None) -> _Real:
    """The data given, the model's own where known, else the reference's samples."""
    found = data if data is not None else own_data(model)
    if found is None:
        return _Real(problem.reference, "the reference's samples", False)
    return _Real(found.images, f"{found.spec.name}, train split", True)


def _row(role: str, plan: Sampler, model: Denoiser, problem: Problem, real: _Real) -> dict[str, Any]:
    about = plan.about
    name = f"{about['solver']}, {about.get('timesteps', '')}, to {about.get('end', '')}"
    if role == "learned":
        name = f"learned from {about.get('from')}, {about.get('timesteps')}"
    row = {
        "role": role,
        "name": name,
        "solver": about["solver"],
        "timesteps": about.get("timesteps"),
        "end": about.get("end"),
        "planned_nfe": plan.nfe,
        "nfe": plan.nfe,
        "n": len(problem),
        "endpoint": None,
        "median": None,
        "frechet": None,
        "frechet_against": real.name,
        "seconds": None,
        "plan": plan,
    }
    begin = time.perf_counter()
    try:
        samples = run_all(plan, model, problem.noise, problem.condition, problem.seed, problem.first)
    except ValueError as error:
        if "not finite" not in str(error):
            raise
        return row  # it diverged: no figures
    row["seconds"] = time.perf_counter() - begin
    distance = endpoint_error(samples, problem.reference)
    row["endpoint"], row["median"] = distance.value, distance.median
    if len(problem) > samples[0].numel():  # a covariance from fewer samples than dimensions says little
        seen = model.decode(samples, **problem.condition) if real.data else samples
        row["frechet"] = frechet(seen.cpu(), real.images.cpu()).value
    return row


@torch.no_grad()
def judge(
    model: Denoiser,
    candidates: list[Candidate],
    learned: Sampler | None,
    problem: Problem,
    reference_nfe: int,
    metric: str,
    data: Dataset | None = None,
) -> list[dict[str, Any]]:
    """One row a sampler, best first: the reference, the learned plan, DDIM at five times the evaluations, and every
    hand-made candidate. The twelve candidates that the search ranked best are judged on all the noises, the others on
    the first 32 (their rows say n = 32)."""
    real = _real(model, problem, data)
    nfe = candidates[0].plan.nfe
    rows = [_row("reference", reference_plan(model, reference_nfe), model, problem, real)]
    if learned is not None:
        rows.append(_row("learned", learned, model, problem, real))
    rows.append(_row("baseline", make_plan(model.process, "ddim", 5 * nfe), model, problem, real))
    rows += [_row("candidate", c.plan, model, problem, real) for c in candidates[:FINALISTS]]
    few = problem.part(0, 32)
    rows += [_row("candidate", c.plan, model, few, real) for c in candidates[FINALISTS:]]
    return sorted(rows, key=lambda row: float("inf") if row[metric] is None else row[metric])
