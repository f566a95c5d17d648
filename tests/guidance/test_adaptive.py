"""Guidance that stops where it is idle, and guidance with forecast empty answers."""

from __future__ import annotations

import pytest
import torch
from scaled import Scaled

import fewstep as fs
from fewstep.guidance.adaptive import Forecast, adaptive, fit, linear_ag
from fewstep.guidance.cfg import cfg
from fewstep.processes.vp import VP

F64 = torch.float64
X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=F64)


def test_with_tolerance_zero_or_outside_a_run_it_is_cfg():
    model, plan = Scaled(), fs.plan(Scaled().process, "ddim", 9)
    for scale in (3.0, lambda log_snr: 2.0 + (log_snr > 0)):
        wanted = plan.run(cfg(model, scale), X, label=0, dtype=F64)
        made = plan.run(adaptive(model, scale, tolerance=0), X, label=0, dtype=F64)
        assert torch.equal(made.samples, wanted.samples) and made.report["rows"] == 18
    t, label = torch.tensor(1.0, dtype=F64), torch.zeros(8, dtype=torch.long)
    assert torch.equal(adaptive(model, 3.0)(X, t, label=label).value, cfg(model, 3.0)(X, t, label=label).value)


def test_each_sample_stops_on_its_own():
    """Near the data both answers are the state: `2 |x0_c - x0_0| / |x0_c|` is known, and falls below the tolerance."""
    model, plan = Scaled(), fs.plan(Scaled().process, "ddim", 14)
    guided = adaptive(model, 3.0, tolerance=0.1)
    labels = [0, 1] * 4
    made = plan.run(guided, X, label=labels, dtype=F64)
    rows = 0.0
    for std in (1.0, 0.5):
        far = [2 * abs(1 - (1.7**2 / std**2) * (std**2 + t**2) / (1.7**2 + t**2)) for t in plan.times[:-1]]
        above = [i for i, value in enumerate(far) if value > 0.2]
        stop = next(i for i, value in enumerate(far) if value < 0.1 and above and i > above[0])
        rows += (len(far) + stop + 1) / 2
    assert made.report["rows"] == rows < 28
    full = plan(cfg(model, 3.0), X, label=labels, dtype=F64)
    assert 0 < float((made.samples - full).norm() / full.norm()) < 0.02
    for i in (0, 1, 5):
        alone = plan(guided, X[i : i + 1], label=labels[i], dtype=F64)
        torch.testing.assert_close(alone, made.samples[i : i + 1], rtol=1e-12, atol=1e-12)
    requests = [(plan, X[:3], {"label": labels[:3]}), (fs.plan(model.process, "ddim", 6), X[3:], {"label": labels[3:]})]
    for found, (own, noise, named) in zip(fs.run_mixed(requests, guided, dtype=F64), requests, strict=True):
        torch.testing.assert_close(found, own(guided, noise, dtype=F64, **named), rtol=1e-12, atol=1e-12)
    # Without a sample that was above, none stops.
    assert plan.run(adaptive(model, 1.01, tolerance=0.1), X, label=0, dtype=F64).report["rows"] == 28


def test_the_cosine_of_the_paper():
    """Here the two eps are always parallel: it stops after the first evaluation."""
    model, plan = Scaled(), fs.plan(Scaled().process, "ddim", 6)
    made = plan.run(adaptive(model, 3.0, criterion="cosine"), X, label=0, dtype=F64)
    assert made.report["rows"] == 7


def test_forecasts_of_gaussians_are_exact(tmp_path):
    """Of Gaussians with one covariance every answer is a linear function of the state."""
    model, plan = Scaled(VP()), fs.plan(VP(), "ddim", 10)
    made = fit(model, plan, 3.0, X, label=0)
    assert made.skipped == (5, 6, 7, 8, 9)
    assert min(made.r2) > 1 - 1e-6
    guided = linear_ag(model, 3.0, made)
    result = plan.run(guided, X, label=0, dtype=F64)
    full = plan(cfg(model, 3.0), X, label=0, dtype=F64)
    torch.testing.assert_close(result.samples, full, rtol=1e-5, atol=1e-5)
    assert result.report["rows"] == 15
    made.save(tmp_path / "forecast.json")
    again = Forecast.load(tmp_path / "forecast.json")
    assert again == made
    torch.testing.assert_close(plan(linear_ag(model, 3.0, again.config()), X, label=0, dtype=F64), result.samples)
    assert fit(model, plan, 3.0, X, skip=[4, 3, 4], label=0).skipped == (3, 4)
    whole = plan.run(linear_ag(model, 3.0, fit(model, plan, 3.0, X, skip=0, label=0)), X, label=0, dtype=F64)
    assert torch.equal(whole.samples, full) and whole.report["rows"] == 20


def test_what_they_refuse(tmp_path):
    model, plan = Scaled(VP()), fs.plan(VP(), "ddim", 6)
    with pytest.raises(ValueError, match="tolerance must be at least 0 and finite, got -1"):
        adaptive(model, 2.0, tolerance=-1)
    with pytest.raises(ValueError, match="unknown criterion 'cosin': did you mean 'cosine'"):
        adaptive(model, 2.0, criterion="cosin")
    with pytest.raises(ValueError, match="'linear-ag' needs forecast="):
        fs.guide(model, "linear-ag", scale=2.0)
    made = fit(model, plan, 2.0, X, label=0)
    guided = linear_ag(model, 2.0, made)
    with pytest.raises(ValueError, match="fitted for another plan .of 6 evaluations, this one has 5"):
        fs.plan(VP(), "ddim", 5)(guided, X, label=0)
    with pytest.raises(ValueError, match="fitted for another plan"):
        fs.plan(VP(), "ddim", 6, timesteps="quadratic")(guided, X, label=0)
    with pytest.raises(ValueError, match="'linear-ag' forecasts from evaluations before"):
        guided(X, torch.tensor(0.5), label=torch.zeros(8).long())
    for skip, message in (([1], "2 to 5 of this plan can be forecast"), (1.5, "must be from 0 to 1")):
        with pytest.raises(ValueError, match=message):
            fit(model, plan, 2.0, X, skip=skip, label=0)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="is no forecast of 'linear-ag'"):
        Forecast.load(tmp_path / "other.json")
