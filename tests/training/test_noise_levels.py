from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.process import process_from_config
from fewstep.training.noise_levels import NoiseLevels

EDM = process_from_config({"process": "edm", "sigma_min": 0.002, "sigma_max": 80.0})
VP = process_from_config({"process": "vp"})
SHARES = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000


@pytest.mark.parametrize("process", [EDM, VP], ids=lambda process: process.name)
@pytest.mark.parametrize(
    "arguments",
    [
        {"draw": "uniform"},
        {"draw": "log-snr"},
        {"draw": "log-normal", "mean": -1.2, "std": 1.2},
        {"draw": "logit-normal", "mean": 0.5, "std": 0.7},
    ],
    ids=lambda arguments: arguments["draw"],
)
def test_times_rise_with_the_share_and_stay_within_the_process(process, arguments):
    t = NoiseLevels(process, **arguments).quantile(SHARES)
    assert t.dtype == torch.float64 and t.shape == SHARES.shape
    assert (t.diff() >= 0).all() and t.min() >= process.t_min - 1e-9 and t.max() <= process.t_max + 1e-9
    ends = NoiseLevels(process, **arguments).quantile(torch.tensor([0.0, 1.0]))
    assert ends.isfinite().all()


def test_log_normal_sigma():
    sigma = NoiseLevels(EDM, "log-normal", mean=-0.8, std=1.1).quantile(SHARES)
    assert float(sigma.log().mean()) == pytest.approx(-0.8, abs=1e-3)
    assert float(sigma.log().std()) == pytest.approx(1.1, abs=1e-2)
    # Under any process it is sigma / alpha that is log-normal.
    t = NoiseLevels(VP, "log-normal", mean=-0.8, std=0.5).quantile(SHARES)
    assert float((-VP.log_snr(t)).mean()) == pytest.approx(-0.8, abs=1e-3)


def test_logit_normal_time():
    t = NoiseLevels(VP, "logit-normal", mean=0.5, std=0.7).quantile(SHARES)
    share = (t - VP.t_min) / (VP.t_max - VP.t_min)
    logit = (share / (1 - share)).log()
    assert float(logit.mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(logit.std()) == pytest.approx(0.7, abs=1e-2)


def test_uniform_draws():
    t = NoiseLevels(EDM, "uniform").quantile(torch.tensor([0.0, 0.25, 1.0]))
    assert t.tolist() == pytest.approx([0.002, 0.002 + 0.25 * 79.998, 80.0])
    log_snr = EDM.log_snr(NoiseLevels(EDM, "log-snr").quantile(SHARES))
    steps = log_snr.diff()
    assert torch.allclose(steps, steps[0], rtol=1e-6)
    assert float(log_snr[0]) == pytest.approx(-math.log(0.002), abs=1e-3)


def test_infinite_ends_are_cut():
    flow = process_from_config({"process": "flow"})
    log_snr = flow.log_snr(NoiseLevels(flow, "log-snr").quantile(torch.tensor([0.0, 1.0])))
    assert log_snr.tolist() == pytest.approx([flow.log_snr(flow.t_min), -10])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"draw": "lognormal"}, "unknown draw of noise levels 'lognormal': did you mean 'log-normal'"),
        ({"draw": "log-normal"}, "need a mean and a positive std"),
        ({"draw": "logit-normal", "mean": 0.0, "std": 0.0}, "need a mean and a positive std"),
        ({"draw": "uniform", "std": 1.0}, "take no mean or std"),
    ],
)
def test_mistakes_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        NoiseLevels(EDM, **arguments)
