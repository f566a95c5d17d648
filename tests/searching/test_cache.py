"""Caches by name and by error."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.core.noise import Noise


def test_by_name_and_by_error():
    digits = fs.load("digits")
    plan = fs.plan(digits.process, "ddim", 12)
    named = fs.cache(digits, "deepcache", interval=2, order=2, start=0.1, stop=0.95)
    assert named.said[1]["order"] == 2 and named.schedule is None and named.bound is None and named.figures is None
    found = fs.cache(digits, error=0.05, plan=plan, calibrate=4)
    assert found.figures["error"] <= 0.05 and "sure" in str(found.bound)
    x = fs.sample(found, 3, label=3, seed=4)  # by the plan that it is for
    assert torch.equal(x, plan(found, Noise(4).normal(0, (3, 1, 8, 8)), seed=4, label=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give a method, as 'deepcache', or the error"),
        ({"method": "deepcache", "error": 0.1}, "calibrated for a plan with a table"),
        ({"method": "deepcach"}, "unknown cache 'deepcach': did you mean 'deepcache'"),
        ({"method": "deepcache", "intervall": 2}, "did you mean 'interval'"),
        ({"method": "deepcache", "interval": 0}, "interval must be a whole number of at least 1, got 0"),
        ({"method": "deepcache", "level": 4}, "a level 4 below its first"),
        ({"method": "deepcache", "folder": "x"}, "a plan and a folder go with error"),
        ({"error": 0.1}, "calibrated for a plan with a table"),
        ({"error": 0.1, "interval": 2}, "leave interval out"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        fs.cache(fs.load("digits"), **options)
