"""The verdict on a student: beside its teacher and the teacher's best plans of few evaluations, on unseen noises."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.plan import Plan
from fewstep.core.sampler import Sampler
from fewstep.core.words import number_of
from fewstep.data.dataset import Dataset
from fewstep.metrics.endpoint import endpoint_error
from fewstep.metrics.frechet import frechet
from fewstep.metrics.precision_recall import precision_recall
from fewstep.searching.candidates import described, fitted, hand_made, rank
from fewstep.searching.learn import learn
from fewstep.searching.problem import Problem, for_model, run_all
from fewstep.searching.real import Real, accuracy, real_of
from fewstep.searching.reference import reference_plan, solve
from fewstep.searching.shared import threads_for

REFERENCE_NFE = 100
FIRST = 1 << 20  # the number of the first noise that is judged: far from all that training and checks use
FEW = (1, 2, 3, 4)
TIMED = 64  # samples by which the teacher's seconds are known
FEWEST = 8  # real samples that are held against others
TRAIN, HELD_OUT, ITERATIONS = 96, 48, 5  # of the learned plans that a student is judged beside


def unseen(
    teacher: Denoiser, seed: int, n: int, data: Dataset | None, given: Mapping[str, Tensor] | None = None
) -> Problem:
    """Noises that no training has seen, their conditions (the data's, or those given) and where the teacher's ODE takes
    them."""
    return solve(teacher, seed, FIRST, n, REFERENCE_NFE, torch.float32, data, given=given)


def verdict(
    teacher: Denoiser, student: Denoiser, plan: Sampler, problem: Problem, data: Dataset | None, *, paired: bool,
    real: bool = True, given: Mapping[str, Tensor] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row for each: the student; the teacher at 100 evaluations; of plans of the teacher at 1 to 4 evaluations and
    at the student's number, the best hand-made and a learned one; at last, where there are data, as many of them
    against the others: what a perfect sampler scores, about.

    A row has role, name, nfe, n, frechet (to the data, or to the teacher's samples where those are not known or not
    wanted), precision, recall, accuracy (where a metric can tell), endpoint (relative error against the teacher's ODE;
    of a student only where its method keeps the pairing), seconds (of a thousand samples). Of real samples nfe is None.

    Args:
        paired: whether the student's method keeps the pairing of noise and sample. real: whether data may be opened.
        given: conditions (n, ...) that the plans are learned with, in place of the data's.
    """
    against = real_of(teacher, problem, data) if real else Real(problem.reference, "the teacher's samples", False)
    name = f"student, {number_of(plan.nfe, 'step')}"
    rows = [_row("student", name, student, plan, problem, against, paired)]
    reference = reference_plan(teacher, REFERENCE_NFE)
    rows.append(_figures("teacher", reference, problem.reference, teacher, problem, against))
    _, seconds = _timed(teacher, reference, problem.part(0, min(TIMED, len(problem))))
    rows[-1] |= {"nfe": REFERENCE_NFE, "endpoint": None, "seconds": seconds}
    with threads_for(teacher):
        train = solve(
            teacher, problem.seed + 1, 0, TRAIN + HELD_OUT, REFERENCE_NFE // 2, torch.float32, data, given=given
        )
        held_out, train = train.part(TRAIN, len(train)), train.part(0, TRAIN)
        for nfe in sorted({*FEW, plan.nfe}):
            rows += [_row(*named, problem, against, True) for named in _best_plans(teacher, nfe, train, held_out)]
    return [*rows, *_floor(against, len(problem), problem.seed)]


def _best_plans(
    teacher: Denoiser, nfe: int, train: Problem, held_out: Problem
) -> Iterator[tuple[str, str, Denoiser, Plan]]:
    """Role, name, model and plan of the best hand-made plan of so many evaluations, and of one learned from it."""
    std = float(train.reference.double().std())
    if not (found := rank([*hand_made(teacher.process, nfe), *fitted(teacher.process, nfe, std)], teacher, held_out)):
        return
    yield "plan", found[0].name, teacher, found[0].plan
    learned, _ = learn(teacher, found, train, held_out, seconds=math.inf, iterations=ITERATIONS)
    if learned is not None:
        yield "learned", f"learned at {nfe}", teacher, learned


def _row(
    role: str, name: str, model: Denoiser, plan: Sampler, problem: Problem, real: Real, paired: bool
) -> dict[str, Any]:
    problem = for_model(problem, model)
    samples, seconds = _timed(model, plan, problem)
    row = _figures(role, plan, samples, model, problem, real) | {"name": name, "seconds": seconds}
    return row if paired else row | {"endpoint": None}


def _timed(model: Denoiser, plan: Sampler, problem: Problem) -> tuple[Tensor, float]:
    """The samples of a plan, and its seconds for a thousand."""
    clock = time.perf_counter()
    with torch.no_grad():
        samples = run_all(plan, model, problem.noise, problem.condition, problem.seed, problem.first)
    return samples, (time.perf_counter() - clock) * 1000 / len(problem)


def _floor(real: Real, n: int, seed: int) -> list[dict[str, Any]]:
    """A row of n of the real samples (half of them, where there are fewer than 2 n) against the others; none without
    enough of them."""
    images = real.images.cpu()
    n = min(n, len(images) // 2)
    if not real.data or n < FEWEST:
        return []
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    row: dict[str, Any] = {"role": "real", "name": "real against real", "nfe": None, "n": n, "against": real.name}
    row |= _near(images[order[:n]], images[order[n:]])
    return [row | {"accuracy": None, "endpoint": None, "seconds": None}]


def _near(seen: Tensor, images: Tensor) -> dict[str, Any]:
    """Figures of samples against real ones; no Frechet distance where a covariance of so few says little."""
    far = frechet(seen, images).value if len(seen) > seen[0].numel() else None
    near = precision_recall(seen, images)
    return {"frechet": far, "precision": near.precision, "recall": near.recall}


def _figures(
    role: str, plan: Sampler, samples: Tensor, model: Denoiser, problem: Problem, real: Real
) -> dict[str, Any]:
    seen = (model.decode(samples, **problem.condition) if real.data else samples).cpu()
    row: dict[str, Any] = {"role": role, "name": described(plan), "nfe": plan.nfe, "n": len(problem)}
    row |= _near(seen, real.images.cpu()) | {"against": real.name, "seconds": None}
    return row | {
        "accuracy": accuracy(model, samples, problem),
        "endpoint": endpoint_error(samples, problem.reference).value,
    }


def said(rows: list[dict[str, Any]]) -> list[str]:
    """What the rows come to: whether a plan wins."""
    key = "frechet" if rows[0]["frechet"] is not None else "recall"
    better = min if key == "frechet" else max
    student = rows[0]
    plans = [row for row in rows if row["role"] in ("plan", "learned") and row[key] is not None]
    rivals = [row for row in plans if row["nfe"] <= student["nfe"]]
    found = []
    if rivals:
        best = better(rivals, key=lambda row: row[key])
        wins = better([best, student], key=lambda row: row[key]) is best
        what = f"{best[key]:.3g} against {student[key]:.3g} of the student ({key} {student['against']})"
        verb = "does better than the student" if wins else "does not reach the student"
        found.append(f"At no more evaluations the teacher's best plan, {best['name']}, {verb}: {what}.")
    more = [row for row in plans if row["nfe"] > student["nfe"] and better([row, student], key=lambda r: r[key]) is row]
    if more:
        least = min(row["nfe"] for row in more)
        first = better([row for row in more if row["nfe"] == least], key=lambda row: row[key])
        found.append(
            f"From {first['nfe']} evaluations on a plan of the teacher does better: {first['name']}, {first[key]:.3g}."
        )
    return found
