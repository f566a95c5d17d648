"""The verdict: every sampler on noises that neither search nor learning has seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.plan import Plan
from fewstep.core.sampler import Sampler
from fewstep.data.dataset import Dataset
from fewstep.metrics.endpoint import endpoint_error
from fewstep.metrics.frechet import frechet
from fewstep.sampling.build import fixed_plan as make_plan
from fewstep.searching.candidates import Candidate, described
from fewstep.searching.problem import Problem
from fewstep.searching.real import Real, accuracy, real_of
from fewstep.searching.reference import reference_plan
from fewstep.searching.shared import Ran, Runs

JUDGED = 6  # hand-made candidates that are measured on all the noises of the verdict


def _row(role: str, plan: Sampler, real: Real) -> dict[str, Any]:
    """A row without figures: that of a plan that diverged."""
    about = plan.about
    name = f"learned from {about.get('from')}, {about.get('timesteps')}" if role == "learned" else described(plan)
    return {
        "role": role,
        "name": name,
        "solver": about["solver"],
        "timesteps": about.get("timesteps"),
        "end": about.get("end"),
        "planned_nfe": plan.nfe,
        "nfe": plan.nfe,
        "n": 0,
        "endpoint": None,
        "median": None,
        "low": None,
        "high": None,
        "accuracy": None,
        "frechet": None,
        "frechet_against": real.name,
        "seconds": None,
        "plan": plan,
    }


@dataclass(frozen=True)
class Judge:
    """What all are measured against: the model's noises with the reference's answers, and the data."""

    model: Denoiser
    problem: Problem
    data: Dataset | None

    def measured(self, role: str, plan: Sampler, run: Ran) -> dict[str, Any]:
        """A row of the verdict."""
        return _measured(role, plan, run, self.model, self.problem, real_of(self.model, self.problem, self.data))


def _measured(role: str, plan: Sampler, run: Ran, model: Denoiser, problem: Problem, real: Real) -> dict[str, Any]:
    row = _row(role, plan, real) | {"n": len(problem)}
    if run.samples is None:
        return row
    row["seconds"] = run.seconds
    distance = endpoint_error(run.samples, problem.reference)
    row |= {"endpoint": distance.value, "median": distance.median, "low": distance.low, "high": distance.high}
    if len(problem) > run.samples[0].numel():  # a covariance from fewer samples than dimensions says little
        seen = model.decode(run.samples, **problem.condition) if real.data else run.samples
        row["frechet"] = frechet(seen.cpu(), real.images.cpu()).value
    row["accuracy"] = accuracy(model, run.samples, problem)
    return row


@torch.no_grad()
def judge(
    model: Denoiser,
    candidates: list[Candidate],
    learned: Plan | None,
    runs: Runs,
    reference_nfe: int,
    metric: str,
    data: Dataset | None = None,
) -> list[dict[str, Any]]:
    """One row per sampler, best first: the reference, the learned plan, DDIM at five times the evaluations, and every
    hand-made candidate.

    The candidates that the search ranked best, `JUDGED` of them, are judged on all the noises. The others have the role
    "raced" and the error that the search measured, on the noises that it held out (`n` says on how many).
    """
    problem = runs.problem
    real = real_of(model, problem, data)
    nfe = candidates[0].plan.nfe
    chosen = [("learned", learned)] if learned is not None else []
    chosen.append(("baseline", make_plan(model.process, "ddim", 5 * nfe)))
    chosen += [("candidate", candidate.plan) for candidate in candidates[:JUDGED]]
    made = runs([plan for _, plan in chosen])
    rows = [_measured(role, plan, run, model, problem, real) for (role, plan), run in zip(chosen, made, strict=True)]
    reference = reference_plan(model, reference_nfe)  # its samples are the problem's
    rows.append(_measured("reference", reference, Ran(problem.reference, math.nan), model, problem, real))
    rows[-1]["seconds"] = None
    for candidate in candidates[JUDGED:]:
        error = candidate.score if math.isfinite(candidate.score) else None
        rows.append(_row("raced", candidate.plan, real) | {"n": candidate.n, "endpoint": error})
    return sorted(rows, key=lambda row: float("inf") if row[metric] is None else row[metric])


def choose(
    rows: list[dict[str, Any]], metric: str, learned: Plan | None, candidates: list[Candidate]
) -> tuple[dict[str, Any], list[str]]:
    """The best judged row that is a sampler at the asked evaluations, and what to say of it."""
    offered = [row for row in rows if row["role"] in ("candidate", "learned") and row[metric] is not None]
    hand = min((row for row in offered if row["role"] == "candidate"), key=lambda row: row[metric])
    own = next((row for row in offered if row["role"] == "learned"), None)
    others = [row for row in rows if row["role"] in ("cached", "student") and row[metric] is not None]
    other = min(others, key=lambda row: row[metric], default=None)
    best = min((row for row in (hand, own) if row is not None), key=lambda row: row[metric])
    if other is not None and other[metric] < best[metric]:
        until = f" until it costs {other['nfe']:g}" if other["role"] == "cached" else ""
        return other, [
            f"{other['name']}{until} is the best: {other[metric]:.3g} against {best[metric]:.3g} of {best['name']}."
        ]
    if own is None:
        return hand, [f"Nothing could be learned here; the best hand-made plan is {hand['name']}."]
    if not own[metric] < hand[metric]:
        return hand, [
            f"Learning did not help: {own[metric]:.3g} against {hand[metric]:.3g} of {hand['name']}, which is returned."
        ]
    gain = hand[metric] / own[metric] if own[metric] > 0 else math.inf
    word = "endpoint error" if metric == "endpoint" else "Frechet distance"
    sure = f" On as many fresh noises its mean lies between {own['low']:.3g} and {own['high']:.3g}, 95 % sure."
    return own, [
        f"The learned plan has {word} {own[metric]:.3g}, the best hand-made plan ({hand['name']}) {hand[metric]:.3g}:"
        f" {gain:.1f} times as much." + (sure if metric == "endpoint" else "")
    ]
