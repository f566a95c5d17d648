"""What a plan can do without: paths, bounds, and the search on a model that is exact."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from scaled import Scaled

import fewstep as fs
from fewstep.caching.budget import budget
from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.vp import VP
from fewstep.searching.cache_budget import coverage, each_deviation, find_budget, front, within_cost
from fewstep.searching.cache_edges import Edge, Measured, Trial, deviation

F64 = torch.float64


def mixture():
    return GaussianMixture(torch.ones(3), torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), 0.3, VP())


def test_the_front_against_all_paths():
    """Every path of a run of eight evaluations, written out."""
    generator = torch.Generator().manual_seed(0)
    n, price = 8, {"a": 0.0, "b": 0.4}
    edges = {
        Edge(i, j, part): Measured(float(torch.rand(1, generator=generator)) * (j - i - 1), 1)
        for i in range(n - 1)
        for j in range(i + 2, min(i + 4, n) + 1)
        for part in price
    }

    def cost(edge: Edge) -> float:
        return price[edge.part] * (edge.j - edge.i - 1) + (0.0 if edge.j == n else 1.0)

    def paths(i: int):
        if i == n:
            yield ()
            return
        yield from paths(i + 1)
        for edge in edges:
            if edge.i == i:
                for rest in paths(edge.j):
                    yield (edge, *rest)

    def spent(path) -> float:
        skipped = sum(edge.j - edge.i - 1 for edge in path)
        return n - skipped + sum(price[edge.part] * (edge.j - edge.i - 1) for edge in path)

    for allowed in (0.2, 0.6, 1.5):
        every = [(spent(p), sum(edges[e].error ** 2 for e in p)) for p in paths(0)]
        every = [one for one in every if one[1] <= allowed**2]
        found = front(n, edges, cost, allowed)
        assert math.isclose(found[0][0], min(c for c, _ in every), abs_tol=1e-9)
        for c, square, path in found:
            assert math.isclose(c, spent(path), abs_tol=1e-9)
            assert math.isclose(square, sum(edges[e].error ** 2 for e in path), abs_tol=1e-9)
            assert not any(a < c - 1e-9 and b <= square + 1e-12 for a, b in every)
        assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(found))


def test_the_bound_covers_what_it_says():
    """Of 200 sets of 100 deviations, about one in twenty bounds less than nine tenths."""
    generator = torch.Generator().manual_seed(0)
    covered = [coverage(torch.rand(100, generator=generator, dtype=F64).tolist()) for _ in range(200)]
    assert 0 < sum(value < 0.9 for value in covered) <= 15
    assert coverage([float(k) for k in range(1, 101)]) == 96.0  # the 96th of 100
    assert coverage([0.1] * 20) == math.inf  # too few to say


def test_a_forked_run_is_the_run_from_its_start():
    """An edge measured from the state at its beginning is a run of the cached model from the noise on."""
    model, plan = mixture(), fs.plan(VP(), "dpmpp-2m", 12)
    noise = Noise(3).normal(0, (8, 2), "cpu", F64)
    trial = Trial(model, plan, noise, {}, 3, 0)
    assert trial.anywhere
    for edge in (Edge(3, 5, "output"), Edge(6, 9, "output"), Edge(10, 12, "output")):
        inside = range(edge.i + 1, min(edge.j, 12))
        rows = ["output" if k in inside else "whole" for k in range(12)]
        cached = budget(model, rows, plan.moments, [1] * 12, plan.name)
        wanted = deviation(plan(cached, noise, dtype=F64), plan(model, noise, dtype=F64))
        assert math.isclose(trial.error(edge, 1), wanted, rel_tol=1e-9)
        assert trial.error(edge, trial.best_order(edge)) <= wanted


def test_what_is_found_is_within_the_error_and_cheaper():
    model, plan = mixture(), fs.plan(VP(), "ddim", 24)
    for error in (0.02, 0.002):
        found = find_budget(model, error, plan, seed=1)
        figures = found.figures
        assert figures["error"] <= error and figures["cost"] < 24
        noise = Noise(9).normal(0, (256, 2), "cpu", F64)
        whole, result = plan(model, noise, dtype=F64), plan.run(found, noise, dtype=F64)
        apart = each_deviation(result.samples, whole)
        assert deviation(result.samples, whole) < 2 * error
        assert float((apart <= found.bound.value).double().mean()) > 0.85
        assert result.report["cost"] == pytest.approx(figures["cost"])
        assert figures["fewer steps"]["error"] > figures["error"]
        assert found.plan is plan and len(found.schedule) == 24
    tight = find_budget(model, 1e-9, plan, seed=1)
    assert set(tight.schedule) == {"whole"} and tight.figures["cost"] == 24 and tight.bound.value == 0.0


def test_a_guided_model_is_calibrated_as_it_runs():
    model = fs.guide(Scaled(VP(), "eps", (2,)), "cfg", scale=2.0)
    plan = fs.plan(VP(), "ddim", 16)
    found = find_budget(model, 0.01, plan, seed=1)
    assert found.figures["cost"] < 16
    noise = Noise(5).normal(0, (32, 2))
    x, y = (plan(one, noise, label=0) for one in (found, model))
    assert deviation(x, y) < 0.03


def test_within_a_cost():
    model, plan = mixture(), fs.plan(VP(), "ddim", 24)
    found = within_cost(model, plan, 12.0, 1, 0)
    noise = Noise(9).normal(0, (64, 2), "cpu", F64)
    assert plan.run(found, noise, dtype=F64).report["cost"] <= 12
    assert within_cost(model, fs.plan(VP(), "ddim", 3), 0.5, 1, 0) is None


def test_a_search_goes_on_from_what_was_measured(tmp_path):
    model, plan = mixture(), fs.plan(VP(), "ddim", 12)
    first = find_budget(model, 0.01, plan, folder=tmp_path)
    data = json.loads((tmp_path / "cache-search.json").read_text())
    key = next(iter(data["edges"]))
    data["edges"][key] = [None, 1]  # as if it had diverged: it is taken as it stands in the file
    (tmp_path / "cache-search.json").write_text(json.dumps(data))
    again = find_budget(model, 0.01, plan, folder=tmp_path)
    assert again.figures["edges"] < first.figures["edges"]
    with pytest.raises(ValueError, match=r"holds a search with other settings \(error\)"):
        find_budget(model, 0.02, plan, folder=tmp_path)
    other = GaussianMixture(torch.ones(3), torch.tensor([[1.0, 0.1], [-1.0, 0.5], [0.0, -1.0]]), 0.3, VP())
    with pytest.raises(ValueError, match=r"other settings \(model\)"):
        find_budget(other, 0.01, plan, folder=tmp_path)
    stopped = find_budget(model, 0.01, plan, seconds=1e-6)
    assert set(stopped.schedule) == {"whole"}


def test_bad_input():
    model, plan = mixture(), fs.plan(VP(), "ddim", 12)
    for error in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="error must be above 0 and finite"):
            find_budget(model, error, plan)
    with pytest.raises(ValueError, match="calibrated for a plan with a table"):
        find_budget(model, 0.1, None)
    with pytest.raises(ValueError, match="and 'ddim, skipping 0.05' is none"):
        find_budget(model, 0.1, fs.find("adaptive-diffusion")(plan))
    with pytest.raises(ValueError, match="made for another process"):
        find_budget(model, 0.1, fs.plan(fs.load("digits").process, "ddim", 12))
    with pytest.raises(ValueError, match="calibrate must be at least 2"):
        find_budget(model, 0.1, plan, calibrate=1)
    with pytest.raises(ValueError, match="seconds must be positive"):
        find_budget(model, 0.1, plan, seconds=0)
    with pytest.raises(ValueError, match="measure is 'flops' or 'seconds', got 'macs'"):
        find_budget(model, 0.1, plan, measure="macs")
    with pytest.raises(ValueError, match="cached already, by 'budget'"):
        find_budget(find_budget(model, 0.05, plan), 0.1, plan)
    with pytest.raises(ValueError, match="needs a shape"):
        find_budget(fs.wrap(lambda x, t: x, VP()), 0.1, plan)
