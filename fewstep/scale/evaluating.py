"""Evaluation over shards: every worker measures the samples it draws, and sums come back, never the pictures.

- frechet: count, mean and scatter of the features, merged by the pairwise formula;
- precision-recall: how many real balls hold each sample, how near to each real ball the samples come (a minimum), and
  the features. These go to every worker once, each takes the balls of some samples and says which real rows they reach
  (an "or");
- accuracy and captions: counts;
- endpoint: two distances a sample, and the first and the last end of each shard.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.metrics.accuracy import accuracy_of, correct
from fewstep.metrics.caption_accuracy import caption_accuracy_of, right_parts
from fewstep.metrics.common import check_same_kind, check_same_shape
from fewstep.metrics.endpoint import endpoint_of, row_errors
from fewstep.metrics.features import find_features
from fewstep.metrics.frechet import Moments, frechet_of
from fewstep.metrics.precision_recall import check_k, inside, precision_recall_of, radii, reached
from fewstep.scale.shards import Done, Executor, Ready, Shard, Work, cut, in_this_process
from fewstep.searching.evaluate import BATCH, FINE, Evaluation, held_out, silent

K = 3  # neighbours of precision and recall, as the metric has them by default
ROWS = 1024  # samples whose balls a worker takes at once
REDUCING = ("frechet", "precision-recall", "accuracy", "captions", "endpoint")
WHY = "it needs all samples at once, and no sum over shards stands for them"

Part = dict[str, Any]


class Measurer:
    """A worker that draws samples and measures them: it returns what the reductions need, arrays and counts."""

    def __init__(self, job: Evaluation) -> None:
        self.job = job
        self.about = {"solver": job.plan.name, "nfe": job.plan.nfe, "device": job.model.device.type}
        self._features = find_features(job.features)
        names = {metric.name for metric in job.metrics}
        self._real: Tensor | None = None
        self._radius: Tensor | None = None
        if names & {"frechet", "precision-recall"}:
            assert job.real is not None
            self._real = self._features(job.real.images, "real")
            if "precision-recall" in names:
                check_k(K, job.n, len(self._real))
                self._radius = radii(self._real, self._real, K)

    def __call__(self, begin: int, end: int) -> tuple[Part, dict[str, Any]]:
        """What the samples `begin` to `end - 1`, at least two, add to each metric."""
        job = self.job
        samples, nfe = job.samples(silent, begin, end)
        found: Part = {}
        if self._real is not None:
            assert job.real is not None
            check_same_shape(samples, job.real.images)
            check_same_kind(samples, job.real.images)
            rows = self._features(samples)
            found["frechet"] = Moments.of(rows)
            if self._radius is not None:
                counts, nearest = inside(rows, self._real, self._radius)
                found["precision-recall"] = {"inside": counts, "nearest": nearest, "rows": rows}
        for metric in job.metrics:
            if metric.name == "accuracy":
                found["accuracy"] = int(correct(samples, job.condition["label"][begin:end].cpu()).sum())
            elif metric.name == "captions":
                found["captions"] = right_parts(samples, job.captions(begin, end))
            elif metric.name == "endpoint":
                found["endpoint"] = _ends(samples, *job.references(silent, begin, end))
        return found, {"nfe": nfe}


class Neighbours:
    """A worker that has the features of all samples, and says which real rows some samples' balls reach."""

    def __init__(self, rows: np.ndarray, real: np.ndarray) -> None:
        self.about: Mapping[str, Any] = {}
        self.rows, self.real = torch.from_numpy(np.array(rows)), torch.from_numpy(np.array(real))

    def __call__(self, begin: int, end: int) -> tuple[Tensor, dict[str, Any]]:
        some = self.rows[begin:end]
        return reached(some, self.real, radii(some, self.rows, K)), {}


class _Whole:
    """The parts of the shards so far, in order."""

    def __init__(self) -> None:
        self.shards = 0
        self.moments: Moments | None = None
        self.right, self.shown = 0, dict[str, int]()
        self.near: dict[str, list[Tensor]] = {"inside": [], "rows": []}
        self.nearest: Tensor | None = None
        self.ends: list[dict[str, Tensor]] = []

    def add(self, part: Part) -> None:
        """Fold the next shard in."""
        self.shards += 1
        if "frechet" in part:
            self.moments = part["frechet"] if self.moments is None else self.moments.merged(part["frechet"])
        if near := part.get("precision-recall"):
            for name, kept in self.near.items():
                kept.append(near[name])
            self.nearest = near["nearest"] if self.nearest is None else torch.minimum(self.nearest, near["nearest"])
        self.right += part.get("accuracy", 0)
        for name, count in part.get("captions", {}).items():
            self.shown[name] = self.shown.get(name, 0) + count
        if "endpoint" in part:
            self.ends.append(part["endpoint"])

    def figure(self, metric: Method, job: Evaluation, executor: Executor) -> dict[str, Any]:
        """A metric's figure from all parts; recall takes a second round of the workers."""
        if metric.name == "accuracy":
            return accuracy_of(self.right, job.n).as_dict()
        if metric.name == "captions":
            return caption_accuracy_of(self.shown, job.n).as_dict()
        if metric.name == "endpoint":
            return self._endpoint()
        assert job.real is not None and self.moments is not None
        features = find_features(job.features)
        real = features(job.real.images, "real")
        if metric.name == "frechet":
            return frechet_of(self.moments, real, features.name, job.seed).as_dict()
        assert self.nearest is not None
        rows = {"rows": torch.cat(self.near["rows"]).numpy(), "real": real.numpy()}
        met = torch.zeros(len(real), dtype=torch.bool)
        for event in executor(Work(f"{__name__}:Neighbours", rows), cut(job.n, ROWS)):
            if isinstance(event, Done):
                met |= event.value
        return precision_recall_of(torch.cat(self.near["inside"]), self.nearest, met, features.name, K).as_dict()

    def _endpoint(self) -> dict[str, Any]:
        def whole(name: str) -> Tensor:
            return torch.cat([part[name] for part in self.ends])

        # From each reference to the one before; before a shard's first one comes the last of the shard before.
        lasts = [self.ends[k - 1]["last"] for k in range(len(self.ends))]
        borders = [(part["first"] - last).norm(dim=1) for part, last in zip(self.ends, lasts, strict=True)]
        steps = torch.cat([x for part, border in zip(self.ends, borders, strict=True) for x in (border, part["steps"])])
        found = endpoint_of(whole("errors"), whole("norms"), steps).as_dict()
        estimate = float(whole("coarse").mean() / whole("norms").mean())
        return found | {"reference_nfe": FINE, "reference_error": estimate}


def evaluate_shards(
    work: Work, job: Evaluation, executor: Executor = in_this_process, advance: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """What `fs.evaluate` returns, measured by workers: the same figures, to the rounding of sums.

    Args:
        work: makes a `Measurer` of the same job.
        job: what is measured, as this process knows it, with metrics that reduce alone (`reducible`).
        advance: called with a number of batches that were drawn; first with 0, as soon as a worker is ready.

    Raises:
        ValueError: a metric that does not reduce.
    """
    if left := [metric.name for metric in job.metrics if metric.name not in REDUCING]:
        raise ValueError(f"the metric {left[0]!r} cannot be measured in shards: {WHY}")
    with executor.kept() if hasattr(executor, "kept") else contextlib.nullcontext():  # for both rounds
        return _measured(work, job, executor, advance or (lambda count: None))


def _measured(work: Work, job: Evaluation, executor: Executor, told: Callable[[int], None]) -> dict[str, Any]:
    # Folded in the order of the shards, whatever order they come in: so the sums are the same every time.
    whole, waiting, nfe = _Whole(), dict[int, tuple[Part, float]](), 0.0
    begin, shards = time.perf_counter(), _of_two(cut(job.n, BATCH))
    for event in executor(work, shards):
        if isinstance(event, Ready):
            told(0)
        elif isinstance(event, Done):
            waiting[event.shard.number] = (event.value, event.facts["nfe"])
            while whole.shards in waiting:
                part, made = waiting.pop(whole.shards)
                nfe += made * -(-len(shards[whole.shards]) // BATCH)
                whole.add(part)
            told(-(-len(event.shard) // BATCH))
    if whole.shards != len(shards):
        raise ValueError(f"{whole.shards} of {len(shards)} shards were measured")
    out = job.facts(nfe / -(-job.n // BATCH), time.perf_counter() - begin)
    for metric in job.metrics:
        out["figures"] |= {metric.name: whole.figure(metric, job, executor)} | held_out(metric, job)
    return out


def reducible(job: Evaluation, asked: bool) -> Evaluation:
    """The job without the metrics that do not reduce, with a note on each; `ValueError` where they were asked for."""
    left = [metric.name for metric in job.metrics if metric.name not in REDUCING]
    if left and asked:
        raise ValueError(f"the metric {left[0]!r} cannot be measured in shards: {WHY}")
    kept = [metric for metric in job.metrics if metric.name in REDUCING]
    return replace(job, metrics=kept, notes=[*job.notes, *(f"no {name}: {WHY}" for name in left)])


def _of_two(shards: Sequence[Shard]) -> list[Shard]:
    """The shards, a last one of a single sample joined to the one before: no metric is of one sample."""
    found = list(shards)
    if len(found) > 1 and len(found[-1]) == 1:
        last = found.pop()
        found[-1] = replace(found[-1], end=last.end)
    return found


def _ends(samples: Tensor, coarse: Tensor, fine: Tensor) -> dict[str, Tensor]:
    """What the endpoint error needs of a shard: numbers for each sample, and the first and the last reference."""
    errors, norms = row_errors(samples, fine)
    rows = fine.to("cpu", torch.float64).flatten(1)
    return {
        "errors": errors,
        "norms": norms,
        "coarse": row_errors(coarse, fine)[0],
        "steps": rows.diff(dim=0).norm(dim=1),
        "first": rows[:1],
        "last": rows[-1:],
    }
