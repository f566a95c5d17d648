"""The options of all methods of guidance, checked and saved."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.core.config import built, config
from fewstep.guidance.cfg import cfg


def test_it_saves_and_loads_with_all_methods_and_options():
    digits = fs.load("digits")
    one = fs.guide(digits, "cfg", scale=3.0, interval=(0.2, 5.0), clamp=True)
    both = fs.guide(one, "apg", scale=2.0, eta=0.5, negative={"label": 3}, rescale=0.25)
    beside: dict = {}
    again = built(config(both, beside), both.state_dict() | beside).eval()
    plan, noise = fs.plan(digits.process, "ddim", 3), torch.randn(2, *digits.shape)
    assert torch.equal(plan(again, noise, label=4), plan(both, noise, label=4))
    assert again.clamp == both.clamp and again.rescale == 0.25 and again.guides[0].interval == (0.2, 5.0)
    assert both.describe()["also guided by"] == ["apg"] and both.describe()["guidance scale"] == 3.0
    with pytest.raises(ValueError, match="no config"):
        config(cfg(digits, lambda log_snr: 2.0))


def test_faulty_options(scaled):
    for interval, message in (
        ((5.0, 0.2), "must rise from 0 or more, got 5 to 0.2"),
        ((-1.0, 2.0), "must rise from 0 or more"),
        ((100.0, 200.0), r"interval \(100, 200\) lies outside the process, whose noise levels are 0.002 to 80"),
        ((1.0,), "interval must be two noise levels"),
        ("wide", "interval must be two noise levels"),
    ):
        with pytest.raises(ValueError, match=message):
            cfg(scaled, 2.0, interval=interval)
    for clamp in ((1.0, -1.0), "yes", (1.0,)):
        with pytest.raises(ValueError, match="clamp must be True, False or a range"):
            cfg(scaled, 2.0, clamp=clamp)
    scaled.value_range = None
    with pytest.raises(ValueError, match="clamp needs the range of the data"):
        cfg(scaled, 2.0, clamp=True)
    for rescale in (-0.1, 1.5, "half"):
        with pytest.raises(ValueError, match="rescale must be from 0 to 1"):
            cfg(scaled, 2.0, rescale=rescale)
    for scale in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="the guidance scale must be at least 0 and finite"):
            fs.guide(scaled, "cfg", scale=scale)
    with pytest.raises(
        ValueError, match="unknown option of the method of guidance 'cfg' 'intervall': did you mean 'inte"
    ):
        fs.guide(scaled, "cfg", intervall=(0.1, 1.0))
    with pytest.raises(ValueError, match="guidance must be one number or 4 of them"):
        fs.sample(cfg(scaled, 2.0), 4, steps=2, label=0, guidance=[1.0, 2.0], solver="ddim")
