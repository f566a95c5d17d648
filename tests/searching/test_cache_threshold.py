"""Thresholds for an error."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.core.noise import Noise
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.dit import DiT
from fewstep.processes.vp import VP
from fewstep.searching.cache_edges import deviation
from fewstep.searching.cache_threshold import find_threshold


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = DiT(1, 4, width=16, depth=3, classes=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return NetworkDenoiser(network, VP(), "v", (1, 4, 4), {"label": fs.Label(3)}).eval()


def fresh(model, plan, cached) -> tuple[Tensor, Tensor]:
    noise = Noise(9).normal(0, (32, 1, 4, 4))
    return plan(cached, noise, label=torch.arange(32) % 3), plan(model, noise, label=torch.arange(32) % 3)


def test_the_largest_threshold_that_keeps_the_error(model):
    plan = fs.plan(model.process, "ddim", 12)
    found = find_threshold(model, "first-block", 0.02, plan, calibrate=4, warmup=2)
    figures = found.figures
    assert figures["error"] <= 0.02 and figures["threshold"] > 1e-4 and figures["cost"] < 12
    assert 0 < figures["reused"] < 1 and found.said[1]["warmup"] == 2
    assert deviation(*fresh(model, plan, found)) < 0.04
    above = min((one["threshold"] for one in figures["tried"] if one["error"] > 0.02), default=None)
    assert above is not None and above > figures["threshold"]  # what is over the error is a larger one
    assert found.bound.noises == 100 and "cache bound" in found.describe()


def test_where_none_is_good_enough_it_is_the_model(model):
    plan = fs.plan(model.process, "ddim", 12)
    found = find_threshold(model, "first-block", 1e-9, plan, calibrate=2)
    assert found.figures["cost"] == 12 and found.bound.value == 0
    assert torch.equal(*fresh(model, plan, found))


def test_by_fs_cache_and_saved(model, tmp_path):
    plan = fs.plan(model.process, "ddim", 12)
    found = fs.cache(model, "first-block", error=0.05, plan=plan, calibrate=2)
    again = fs.load(fs.save(found, tmp_path / "model"))
    assert again.bound == found.bound and json.dumps(again.figures) == json.dumps(found.figures)


def test_bad_input(model):
    plan = fs.plan(model.process, "ddim", 12)
    with pytest.raises(ValueError, match="'taylorseer' has no threshold"):
        find_threshold(model, "taylorseer", 0.1, plan)
    with pytest.raises(ValueError, match="error finds the threshold"):
        find_threshold(model, "first-block", 0.1, plan, threshold=0.3)
    with pytest.raises(ValueError, match="error must be above 0"):
        fs.cache(model, "first-block", error=-0.1, plan=plan)
    with pytest.raises(ValueError, match="did you mean 'first-block'"):
        fs.cache(model, "first-blok", error=0.1, plan=plan)
