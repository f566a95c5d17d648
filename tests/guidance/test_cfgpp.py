"""CFG++ by its own formula, and the scale of each step that makes "cfg" of it."""

from __future__ import annotations

import math

import pytest
import torch
from scaled import Scaled

import fewstep as fs
from fewstep.guidance.cfg import cfg
from fewstep.guidance.cfgpp import cfgpp
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=lambda process: process.name)
def test_it_is_its_formula_and_cfg_with_a_scale_of_each_step(process):
    model, share = Scaled(process), 0.6
    plan = fs.plan(process, "ddim", steps=7, timesteps="uniform" if process.name != "edm" else "karras")
    made = plan.run(cfgpp(model, share), X, label=0, dtype=F64)
    x = X * plan.start[1]
    for t, s in zip(plan.times[:-1], plan.times[1:], strict=True):
        time = torch.tensor(t, dtype=F64)
        given, empty = (model(x, time, label=torch.full((4,), n)) for n in (0, 2))
        x = process.alpha(s) * torch.lerp(empty.x0, given.x0, share) + process.sigma(s) * empty.eps
    torch.testing.assert_close(made.samples, x, rtol=1e-12, atol=1e-12)
    steps = [process.log_snr(s) - process.log_snr(t) for t, s in zip(plan.times[:-1], plan.times[1:], strict=True)]
    scales = [share / (1 - math.exp(-h)) for h in steps]
    assert scales[-1] == share
    by_scale = fs.plan(process, "ddim", timesteps=plan.times, guidance=scales)
    torch.testing.assert_close(
        by_scale(cfg(model, 1.0), X, label=0, dtype=F64), x, rtol=2e-6, atol=2e-6
    )  # float32 scales
    assert made.report["rows"] == 14


def test_on_even_log_snr_it_is_one_scale_but_for_the_last_step():
    model, plan = Scaled(), fs.plan(EDM(), "ddim", steps=10, timesteps="log-snr")
    h = math.log(80 / 0.002) / 9
    scales = [0.6 / (1 - math.exp(-h))] * 9 + [0.6]
    by_scale = fs.plan(EDM(), "ddim", steps=10, timesteps="log-snr", guidance=scales)
    one, other = plan(cfgpp(model, 0.6), X, label=0, dtype=F64), by_scale(cfg(model, 1.0), X, label=0, dtype=F64)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_at_lambda_one_it_is_still_at_work_and_each_sample_may_have_its_own():
    model, plan = Scaled(VP()), fs.plan(VP(), "ddim", steps=5)
    guided = cfgpp(model, 1.0)
    assert not torch.allclose(plan(guided, X, label=0, dtype=F64), plan(model, X, label=0, dtype=F64))
    rows = plan(guided, X, label=0, guidance=[0.2, 0.4, 0.6, 1.0], dtype=F64)
    for i, share in enumerate((0.2, 0.4, 0.6, 1.0)):
        torch.testing.assert_close(rows[i : i + 1], plan(cfgpp(model, share), X[i : i + 1], label=0, dtype=F64))
    assert fs.sample(guided, 2, steps=4, label=0).shape == (2, 3)  # ddim where nothing is named


def test_what_it_refuses():
    model = Scaled(VP())
    with pytest.raises(ValueError, match="the scale of 'cfg..' is its lambda, from 0 to 1, got 1.5"):
        fs.guide(model, "cfg++", scale=1.5)
    guided = fs.guide(model, "cfg++", scale=0.5)
    with pytest.raises(ValueError, match="'cfg..' needs to know the step: sample with a ddim plan"):
        guided(X, torch.tensor(0.5), label=torch.zeros(4).long())
    with pytest.raises(ValueError, match="'cfg..' is a rule of ddim, this plan is of 'dpmpp-2m'"):
        fs.plan(VP(), "dpmpp-2m", 4)(guided, X, label=0)
    with pytest.raises(ValueError, match="guidance must be a finite number of at least 0 and at most 1, got 2"):
        fs.plan(VP(), "ddim", 4)(guided, X, label=0, guidance=2.0)
