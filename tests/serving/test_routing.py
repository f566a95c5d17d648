"""Routing by predicted quality minus the price of cost: choices and curves by hand, and folders."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.core.methods import find
from fewstep.serving.routing import Option, Router, along, budget_curve, fit_router, mixture

F64 = torch.float64
OPTIONS = (Option("shapes", 8, "ddim", 2.0, cost=16.0), Option("shapes", 1, cost=1.0), Option("shapes", 4, cost=4.0))
CAPTIONS = ["a red circle", "a red circle above a blue cross", "a cyan circle", "a cyan cross left of a red ring"]
# By option: the dear one does both, the cheap one only single things.
QUALITY = torch.tensor([[1.0, 0.95, 1.0], [0.9, 0.1, 0.4], [1.0, 0.95, 1.0], [0.9, 0.1, 0.4]], dtype=F64)


def router(**options) -> Router:
    return find("cost-routing", "router")(CAPTIONS, OPTIONS, QUALITY, **({"predictor": "knn", "k": 1} | options))


def test_the_choice_is_quality_minus_the_price_of_cost():
    made = router()
    torch.testing.assert_close(made.predict(CAPTIONS), QUALITY)
    for price in (0.0, 0.1, 0.5, 1.0, 5.0):
        for caption, row in zip(CAPTIONS, QUALITY.tolist(), strict=True):
            worth = [q - price * option.cost / 16 for q, option in zip(row, OPTIONS, strict=True)]
            assert worth[OPTIONS.index(made.choose(caption, price))] == pytest.approx(max(worth))
    assert made.choose("a red circle", 0.0) is OPTIONS[2]  # as good as the dearest, and cheaper
    assert made.choose("a red circle", 0.3) is OPTIONS[1]
    assert made.choose("a red circle above a blue cross", 0.1) is OPTIONS[0]
    assert made.choose("", 0.1) is OPTIONS[0]  # no known word: the mean of all


def test_costs_may_be_in_any_unit():
    made, other = (
        router(),
        fit_router(CAPTIONS, [Option("m", k + 1, cost=o.cost / 50) for k, o in enumerate(OPTIONS)], QUALITY, k=1),
    )
    for caption, price in itertools.product(CAPTIONS, (0.05, 0.3, 2.0)):
        assert other.options.index(other.choose(caption, price)) == OPTIONS.index(made.choose(caption, price))


def test_the_budget_curve_by_hand():
    """Two captions, two options: the dear one first pays for the second caption, then for both."""
    predicted = torch.tensor([[0.8, 0.9], [0.2, 0.8]])
    quality = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    curve = budget_curve(predicted, quality, [1.0, 5.0])
    torch.testing.assert_close(curve, torch.tensor([[1.0, 0.5], [3.0, 1.0], [5.0, 1.0]], dtype=F64))
    assert [along(curve, cost) for cost in (0.5, 1, 2, 3, 4, 9)] == [0.5, 0.5, 0.75, 1.0, 1.0, 1.0]


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_a_budget_curve_rises_in_cost_and_is_best_for_true_qualities(seed, n, m):
    generator = torch.Generator().manual_seed(seed)
    quality = torch.rand(n, m, generator=generator, dtype=F64)
    costs = (torch.rand(m, generator=generator, dtype=F64) + 0.1).tolist()
    curve = budget_curve(quality, quality, costs)
    assert bool((curve[1:, 0] > curve[:-1, 0] - 1e-12).all()) and bool((curve[1:, 1] >= curve[:-1, 1] - 1e-12).all())
    fixed = torch.stack((torch.tensor(costs, dtype=F64), quality.mean(0)), dim=1)
    for cost in torch.linspace(min(costs), max(costs), 7, dtype=F64).tolist():
        assert along(curve, cost) >= mixture(fixed, cost) - 1e-9  # who knows the qualities beats every coin


def test_the_best_mixture_is_the_upper_hull():
    points = torch.tensor([[1.0, 0.2], [2.0, 0.3], [4.0, 0.8], [8.0, 0.7]])
    for cost, wanted in ((1, 0.2), (2, 0.4), (2.5, 0.5), (4, 0.8), (6, 0.8), (9, 0.8)):
        assert mixture(points, cost) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="nothing costs 0.5 or less: the cheapest costs 1"):
        mixture(points, 0.5)


@pytest.mark.parametrize("predictor", ["knn", "learned"])
def test_a_folder_comes_back(tmp_path, predictor):
    made = fit_router(CAPTIONS, OPTIONS, QUALITY, predictor, "seconds", **({"k": 1} if predictor == "knn" else {}))
    again = Router.load(made.save(tmp_path / "new" / "router"))
    assert again.options == OPTIONS and again.unit == "seconds"
    asked = [*CAPTIONS, "", "a unicorn"]
    assert torch.equal(again.predict(asked), made.predict(asked))
    assert sorted(path.name for path in (tmp_path / "new" / "router").iterdir()) == [
        "router.json",
        "router.safetensors",
    ]
    assert again.choose("a red circle").model == "shapes" and again.choose("a red circle").guidance is None
    router().save(tmp_path / "new" / "router")  # gives way
    assert Router.load(tmp_path / "new" / "router").predictor.name == "knn"


def test_what_is_damaged_is_refused(tmp_path):
    path = router().save(tmp_path / "router")
    whole = {name: (path / name).read_bytes() for name in ("router.json", "router.safetensors")}

    def changed(name, data):
        for other, old in whole.items():
            (path / other).write_bytes(old)
        if data is None:
            (path / name).unlink()
        else:
            (path / name).write_bytes(data)

    about = json.loads(whole["router.json"])
    for name, data, why in (
        ("router.json", None, "no router that was finished: it has no router.json"),
        ("router.safetensors", None, "it has no router.safetensors"),
        ("router.json", b"{", "is not JSON"),
        ("router.json", b"[]", "is not a router of this version"),
        ("router.json", json.dumps(about | {"format": "fewstep-model-2"}).encode(), "is not a router of this version"),
        ("router.json", json.dumps(about | {"unit": "seconds"}).encode(), "changed or damaged"),
        ("router.safetensors", whole["router.safetensors"][:-1], "changed or damaged"),
        ("router.safetensors", b"\x80\x04.", "changed or damaged"),
    ):
        changed(name, data)
        with pytest.raises(ValueError, match=why):
            Router.load(path)
    with pytest.raises(ValueError, match="no router that was finished"):
        Router.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        router().save(tmp_path / "file")


def test_bad_input():
    for change, why in (
        ({"quality": QUALITY[:3]}, r"quality must be \(4, 3\), captions by options, got \(3, 3\)"),
        ({"quality": QUALITY * 2}, r"must lie in \[0, 1\]"),
        ({"quality": QUALITY * torch.nan}, r"must lie in \[0, 1\]"),
        ({"predictor": "nearest"}, "unknown predictor of quality 'nearest'"),
        ({"options": [OPTIONS[0]] * 3}, "needs options that differ"),
    ):
        given = {"captions": CAPTIONS, "options": OPTIONS, "quality": QUALITY} | change
        with pytest.raises(ValueError, match=why):
            fit_router(**given)
    with pytest.raises(ValueError, match=r"\(0, 3\)|must be"):
        fit_router([], OPTIONS, QUALITY)
    for price in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="cost must be a finite number of at least 0"):
            router().choose("a cross", price)
    with pytest.raises(ValueError, match="captions must be texts"):
        router().predict([3])
    for options, why in (
        ({"model": ""}, "an option has a model"),
        ({"steps": 0}, "at least one step"),
        ({"steps": 1.5}, "steps of an option must be a whole number"),
        ({"steps": 2, "nfe": 2}, "at least one step or evaluation, got 'shapes', steps 2 and nfe 2"),
        ({"nfe": 0}, "at least one step or evaluation"),
        ({"cost": 0.0}, "cost must be above 0"),
        ({"guidance": float("inf")}, "guidance finite"),
    ):
        with pytest.raises(ValueError, match=why):
            Option(**({"model": "shapes"} | options))
    assert str(OPTIONS[0]) == "shapes, 8 steps, ddim, guidance 2" and str(Option("m")) == "m, own plan"
    assert str(Option("m", nfe=1)) == "m, at most 1 evaluation"
