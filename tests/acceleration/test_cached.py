"""Cached points of the verdict."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fewstep as fs
from fewstep.acceleration.cached import cached_rows
from fewstep.acceleration.verdict import Judge, choose
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.vp import VP
from fewstep.searching.candidates import FORECAST, fitted
from fewstep.searching.reference import solve

F64 = torch.float64


@pytest.fixture(scope="module")
def judge() -> Judge:
    model = GaussianMixture(torch.ones(3), torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), 0.3, VP())
    return Judge(model, solve(model, 5, 100, 64, 60, torch.float64), None)


def hand(solver: str, rule: str = "log-snr", error: float = 0.1) -> dict[str, Any]:
    return {"role": "candidate", "name": solver, "solver": solver, "timesteps": rule, "endpoint": error, "plan": None}


def test_longer_runs_that_cost_no_more(judge):
    rows = [hand("dpmpp-2m"), hand("universal", "universal"), hand("ddim"), hand("heun")]
    found = cached_rows(judge.model, rows, 12, 0, judge)
    assert {row["solver"] for row in found} == {"dpmpp-2m", "ddim"}  # the best two that have longer runs
    for row in found:
        assert row["role"] == "cached" and row["nfe"] <= 12 < row["planned_nfe"] and row["endpoint"] > 0
        result = row["plan"].run(row["denoiser"], judge.problem.noise, dtype=F64)
        assert result.report["cost"] == pytest.approx(row["nfe"])


def test_few_evaluations_have_nothing_to_save(judge):
    assert cached_rows(judge.model, [hand("dpmpp-2m")], FORECAST - 1, 0, judge) == []


def test_the_best_is_chosen_whatever_it_is():
    rows = [{**hand("ddim"), "nfe": 12}, {"role": "cached", "name": "long", "nfe": 11.5, "endpoint": 0.05}]
    chosen, notes = choose(rows, "endpoint", None, [])
    assert chosen["name"] == "long" and "until it costs 11.5 is the best: 0.05 against 0.1 of ddim" in notes[0]
    rows[1]["endpoint"] = 0.2
    assert choose(rows, "endpoint", None, [])[0]["name"] == "ddim"


def test_forecast_plans_are_among_the_candidates():
    process = fs.load("digits").process
    names = [plan.name for plan in fitted(process, FORECAST, 0.75)]
    assert sum("skipped" in name for name in names) == 8
    assert not any("skipped" in plan.name for plan in fitted(process, FORECAST - 1, 0.75))
    assert all(plan.nfe == FORECAST for plan in fitted(process, FORECAST, 0.75))
