"""What samples are judged by besides a reference: real data, and whether they are what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.conditions.text import Text
from fewstep.core.denoiser import Denoiser
from fewstep.core.methods import methods
from fewstep.data.dataset import Dataset
from fewstep.searching.problem import Problem, known_data, own_data


@dataclass(frozen=True)
class Real:
    """What the samples' distribution is compared with, and whether that is data: then the samples are decoded first."""

    images: Tensor
    name: str
    data: bool


def real_of(model: Denoiser, problem: Problem, data: Dataset | None) -> Real:
    """The data given, the model's own where known, else the reference's samples."""
    found = data if data is not None else own_data(model)
    if found is None:
        return Real(problem.reference, "the reference's samples", False)
    return Real(found.images, f"{found.spec.name}, train split", True)


def accuracy(model: Denoiser, samples: Tensor, problem: Problem) -> float | None:
    """The share of samples that are what was asked for, by the metric that knows the model's data; None without one."""
    for metric in methods("metric"):
        (need, *more), of = metric.facts["needs"], metric.facts.get("of")
        kind = model.conditions.get(need)
        if more or kind is None or of not in (None, known_data(model)):
            continue
        asked: Any = problem.condition[need].cpu()
        if isinstance(kind, Text):
            asked = [kind.words(row) for row in asked.tolist()]
        seen = model.decode(samples, **problem.condition).cpu()
        return float(metric.load()(seen, asked).value)
    return None
