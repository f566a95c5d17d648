"""The contract of every metric: registered metrics enter by themselves, by what their cards say they need."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.core.methods import Method, methods
from fewstep.data.dataset import Dataset
from fewstep.data.open import open_built_in
from fewstep.metrics.common import Result
from fewstep.searching.evaluate import NEEDS, metric_names

METRICS = methods("metric")
N = 48


def data(metric: Method) -> Dataset:
    """The validation split of the data that the metric is of; the digits, where it takes any."""
    return open_built_in(metric.facts.get("of", "digits"), "validation")


def images(metric: Method) -> Tensor:
    return data(metric)[torch.arange(N)][0]


def beside(metric: Method) -> list[Any]:
    """What the metric needs beside the samples, for samples that are the first images of its data."""
    real, (x0, named) = data(metric), data(metric).batch(torch.arange(N))
    given: dict[str, Callable[[], Any]] = {
        "data": lambda: x0,
        "pairs": lambda: x0,
        "reference": lambda: x0,
        "label": lambda: named["label"],
        "text": lambda: [real.spec.text.words(row) for row in named["text"].tolist()],
    }
    return [given[need]() for need in metric.facts["needs"]]


def measure(metric: Method, samples: Tensor) -> Result:
    """The metric on samples; one of paths takes them as the middle of a path between the images and their negatives."""
    if metric.facts["needs"] == ("path",):
        ends = images(metric)
        return metric.load()([ends, samples, -ends], [1.0, 0.5, 0.0])
    return metric.load()(samples, *beside(metric))


def best(metric: Method) -> Tensor:
    """The samples that are as they should be: the images, or the middle of the straight path."""
    return torch.zeros_like(images(metric)) if metric.facts["needs"] == ("path",) else images(metric)


def spoilt(metric: Method, amount: float) -> Tensor:
    """The best samples with noise, which leaves the middle of a path no middle."""
    x = best(metric)
    return x + amount * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def each() -> Any:
    return pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)


@each()
def test_the_card_says_what_it_needs_and_which_way_is_better(metric):
    facts = metric.facts
    assert facts["needs"] and set(facts["needs"]) <= {*NEEDS, "path"} and facts["better"] in ("low", "high")
    assert ("path" in facts["needs"]) != (metric.name in metric_names())
    required = [p for p in inspect.signature(metric.load()).parameters.values() if p.default is p.empty]
    assert len(required) == (1 if "path" in facts["needs"] else 1 + len(facts["needs"]))


@each()
def test_it_is_best_on_what_it_should_be_and_worse_the_further_from_it(metric):
    values = [measure(metric, x).value for x in (best(metric), spoilt(metric, 0.4), spoilt(metric, 4.0))]
    if metric.facts["better"] == "low":
        assert values[0] == pytest.approx(0.0, abs=1e-4) and values[0] < values[1] < values[2]
    else:
        assert values[0] > 0.95 and values[0] > values[2] and values[0] >= values[1] >= values[2]


@each()
def test_it_is_a_figure_with_its_number_of_samples_for_json(metric):
    import json

    found = measure(metric, spoilt(metric, 0.4))
    assert isinstance(found, Result) and found.n == N
    again = json.loads(json.dumps(found.as_dict()))
    assert again["value"] == found.value and again["n"] == N and math.isfinite(found.value)


@each()
def test_neither_dtype_nor_gradients_change_it(metric):
    x = spoilt(metric, 0.4)
    value = measure(metric, x).value
    assert measure(metric, x.clone().requires_grad_()).value == value  # nothing is kept for a backward pass
    if metric.facts.get("of") is None:  # a judge is a network of its own precision
        assert measure(metric, x.double()).value == pytest.approx(value, rel=1e-6)


@each()
def test_the_samples_own_order_with_what_goes_with_them_does_not_matter(metric):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    x = spoilt(metric, 0.4)
    if metric.facts["needs"] == ("path",):
        ends = images(metric)
        found = metric.load()([ends[order], x[order], -ends[order]], [1.0, 0.5, 0.0])
    else:
        moved = [[v[i] for i in order] if isinstance(v, list) else v[order] for v in beside(metric)]
        found = metric.load()(x[order], *moved)
    assert found.value == pytest.approx(measure(metric, x).value, rel=1e-6)


@each()
def test_what_is_not_finite_is_refused_by_its_count(metric):
    x = spoilt(metric, 0.4)
    x[3] = math.nan
    x[5].view(-1)[0] = math.inf
    with pytest.raises(ValueError, match="not finite, in 2 of 48 samples"):
        measure(metric, x)


@each()
def test_what_is_no_samples_is_refused(metric):
    for wrong in ([1.0, 2.0], torch.zeros(N), torch.zeros(0, 1, 8, 8), torch.zeros(N, 1, 8, 8, dtype=torch.complex64)):
        with pytest.raises(ValueError):
            measure(metric, wrong)


@pytest.mark.parametrize("metric", [m for m in METRICS if "path" not in m.facts["needs"]], ids=lambda m: m.name)
def test_what_goes_with_the_samples_must_fit_them(metric):
    x = images(metric)
    given = beside(metric)
    if "data" in metric.facts["needs"]:
        given = [given[0][..., :4]]  # real data of another shape
    else:
        given = [value[: N - 1] for value in given]  # one fewer
    with pytest.raises(ValueError):
        metric.load()(x, *given)
