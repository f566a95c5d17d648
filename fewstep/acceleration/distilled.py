"""A student as a point of the verdict: distilled for the evaluations asked for, judged beside the plans."""

from __future__ import annotations

import time
from typing import Any

import torch

from fewstep.acceleration.verdict import Judge
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import card
from fewstep.data.dataset import Dataset
from fewstep.distillation.distill import distill
from fewstep.searching.problem import for_model, run_all
from fewstep.searching.shared import Ran


def student_row(
    model: Denoiser, method: str, nfe: int, seconds: float, iterations: int | None, seed: int, data: Dataset | None,
    judge: Judge, progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The row of a student of `nfe` steps, or of one where the method has no others: with its plan, and as `denoiser`
    the student.

    Args:
        method: a distiller's name. seconds: of training, or `iterations`.

    Raises:
        ValueError: what `distill` raises.
    """
    steps = 1 if card(method, "distiller")[0].facts["steps"] == 1 else nfe
    budget: dict[str, Any] = {"seconds": seconds} if iterations is None else {"iterations": iterations}
    made = distill(model, method, steps=steps, data=data, seed=seed, judge=False, progress=progress, **budget)
    problem = for_model(judge.problem, made.model)
    begin = time.perf_counter()
    with torch.no_grad():
        samples = run_all(made.plan, made.model, problem.noise, problem.condition, problem.seed, problem.first)
    row = judge.measured("student", made.plan, Ran(samples, time.perf_counter() - begin))
    if not card(method, "distiller")[0].facts["pairing"]:  # another sample of the same noise is no error
        row |= {"endpoint": None, "median": None, "low": None, "high": None}
    return row | {"name": f"student by {method}, {made.plan.nfe} steps", "denoiser": made.model}
