"""Figures over shards are those of one machine; what comes back are sums, features and numbers, no pictures."""

from __future__ import annotations

import random

import pytest
import torch

import fewstep as fs
from fewstep.metrics.frechet import Moments, frechet
from fewstep.scale import evaluating
from fewstep.scale.evaluating import Measurer, evaluate_shards, reducible
from fewstep.scale.shards import Ready, Work, cut, in_this_process
from fewstep.searching import evaluate as searching
from fewstep.searching.evaluate import evaluate, prepare

F64 = torch.float64


def test_merged_moments_are_those_of_all_rows():
    """Far from zero, where sums of squares lose their digits, in unequal parts and any order."""
    rows = 1e6 + torch.randn(1000, 5, generator=torch.Generator().manual_seed(0), dtype=F64) @ torch.diag(
        torch.tensor([1e-3, 1.0, 10.0, 1e-2, 1.0], dtype=F64)
    )
    whole = Moments.of(rows)
    parts = [Moments.of(part) for part in rows.split([1, 2, 300, 7, 690])]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merged(part)
    assert merged.n == 1000
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-15, atol=0)
    torch.testing.assert_close(
        merged.covariance, whole.covariance, rtol=1e-9, atol=1e-9 * float(whole.covariance.max())
    )
    naive = (rows.T @ rows - 1000 * torch.outer(whole.mean, whole.mean)) / 999
    assert (naive - whole.covariance).abs().max() > 100 * (merged.covariance - whole.covariance).abs().max()
    with pytest.raises(ValueError, match="at least 2 rows"):
        _ = parts[0].covariance


def measurer(model, metrics, features, n=17, seed=0, plan=None):
    """The worker of a test: its model opened by name or folder."""
    opened = fs.load(model)
    made = fs.plan(opened.process, "ddim", 2) if plan is None else plan
    return Measurer(prepare(opened, made, n, metrics, features, seed))


@pytest.fixture
def small(monkeypatch):
    """Batches of four samples."""
    for module in (searching, evaluating):
        monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(evaluating, "ROWS", 5)
    # A reference of few evaluations: what it is does not matter here.
    monkeypatch.setattr(searching, "COARSE", 3)
    for module in (searching, evaluating):
        monkeypatch.setattr(module, "FINE", 6)


def shuffled(work, shards):
    """Shards in another order, as workers finish."""
    events = list(in_this_process(work, shards))
    random.Random(0).shuffle(events)
    return events


# A last shard of one, of two, and a single shard.
@pytest.mark.parametrize("n, features", [(17, "digits"), (10, "pixels"), (2, "pixels")])
def test_the_figures_are_those_of_one_machine(small, n, features):
    metrics = ["frechet", "precision-recall", "accuracy", "endpoint"]
    metrics = [name for name in metrics if n > 3 or name != "precision-recall"]
    model = fs.load("digits")
    plan = fs.plan(model.process, "ddim", 2)
    there = evaluate(model, plan, n, metrics, features, seed=3)
    options = {"model": "digits", "metrics": metrics, "features": features, "n": n, "seed": 3}
    told = []
    job = prepare(model, plan, n, metrics, features, 3)
    here = evaluate_shards(Work(f"{__name__}:measurer", options), job, shuffled, told.append)
    assert sum(told) == -(-n // 4) and here["actual_nfe"] == there["actual_nfe"]
    assert list(here["figures"]) == list(there["figures"]) and set(here) == set(there)
    for name, found in there["figures"].items():
        for key, value in found.items():
            rounding = 1e-7 if name == "frechet" else 1e-12
            if isinstance(value, str | None):
                assert here["figures"][name][key] == value
                continue
            assert here["figures"][name][key] == pytest.approx(value, rel=rounding, abs=1e-12), (name, key)


def test_captions_are_counted(small):
    model = fs.load("shapes")
    plan = fs.plan(model.process, "ddim", 2)
    there = evaluate(model, plan, 6, ["captions"])
    options = {"model": "shapes", "metrics": ["captions"], "features": None, "n": 6}
    here = evaluate_shards(Work(f"{__name__}:measurer", options), prepare(model, plan, 6, ["captions"]))
    assert here["figures"] == there["figures"]


def test_no_picture_comes_back(small):
    """Of a shard: F + F^2 numbers, vectors of features, numbers for each sample, and two ends."""
    worker = measurer("digits", ["frechet", "precision-recall", "accuracy", "endpoint"], "digits", n=12)
    part, facts = worker(4, 8)
    assert facts == {"nfe": 2} and isinstance(part["accuracy"], int)
    shapes = {name: tuple(value.shape) for name, value in part["endpoint"].items()}
    assert shapes == {"errors": (4,), "norms": (4,), "coarse": (4,), "steps": (3,), "first": (1, 64), "last": (1, 64)}
    assert part["frechet"].mean.shape == (64,) and part["frechet"].scatter.shape == (64, 64)
    near = part["precision-recall"]
    assert near["rows"].shape == (4, 64) and near["inside"].shape == (4,) and near["nearest"].ndim == 1


def test_a_metric_that_does_not_reduce_says_so():
    model = fs.load("digits")
    job = prepare(model, None, 10)
    kept = reducible(job, asked=False)
    assert {metric.name for metric in kept.metrics} == {"frechet", "precision-recall", "accuracy", "endpoint"}
    assert kept.notes[-1].startswith("no sliced-wasserstein: it needs all samples at once")
    job = prepare(model, None, 10, ["frechet", "sliced-wasserstein"])
    for refused in (lambda: reducible(job, asked=True), lambda: evaluate_shards(Work("x:y", {}), job)):
        with pytest.raises(ValueError, match="'sliced-wasserstein' cannot be measured in shards: it needs all"):
            refused()


def test_a_shard_that_is_missing_is_missed(small):
    model = fs.load("digits")
    plan = fs.plan(model.process, "ddim", 2)
    work = Work(f"{__name__}:measurer", {"model": "digits", "metrics": ["accuracy"], "features": None, "n": 10})

    def short(work, shards):
        assert [(s.begin, s.end) for s in shards] == [(s.begin, s.end) for s in cut(10, 4)]
        return [e for e in in_this_process(work, shards) if isinstance(e, Ready) or e.shard.number != 1]

    with pytest.raises(ValueError, match="1 of 3 shards were measured"):
        evaluate_shards(work, prepare(model, plan, 10, ["accuracy"]), short)


def test_precision_and_recall_need_a_neighbour():
    with pytest.raises(ValueError, match="k must be from 1 to one less than the smaller set"):
        measurer("digits", ["precision-recall"], "pixels", n=3)


def test_frechet_of_moments_is_frechet():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 4, generator=generator), torch.randn(70, 4, generator=generator) + 1
    from fewstep.metrics.frechet import frechet_of

    halves = Moments.of(a[:20].double()).merged(Moments.of(a[20:].double()))
    ours, theirs = frechet_of(halves, b.double(), "pixels", 1), frechet(a, b, seed=1)
    assert ours.value == pytest.approx(theirs.value, rel=1e-12) and ours.floor == theirs.floor
