"""RED-Diff's stationary points: the mode with the score's weights, and not with the others."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, gaussian, half, mixture, normal, wide

import fewstep as fs
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.restoration.red_diff import REDDiff

F64 = torch.float64


def mode(model, a, y, noise):
    return model.posterior(a, y[0], noise).means[0]


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
def test_the_scores_weights_end_at_the_mode_of_a_gaussian(process):
    model, a = gaussian(process=process), wide()
    y = a.measure(model.sample(1, seed=3), noise=0.5)
    mu = fs.restore(
        model, y, a, 0.5, method="red-diff", options={"weights": "score"}, nfe=800, dtype=F64, timesteps="log-snr"
    )
    assert float((mu[0] - mode(model, a, y, 0.5)).abs().max()) < 1e-2


def test_only_they_make_the_mode_stationary():
    """The mean of the pull over eps, at the mode, against what the measurement pulls with."""
    model, a, noise = gaussian(), wide(), 0.5
    y = a.measure(model.sample(1, seed=3), noise=noise)
    mu = mode(model, a, y, noise)[None]
    misfit = a.adjoint(a(mu) - y)
    t = model.process.time(5.0)  # u = e^10
    alpha, sigma = model.process.alpha(t), model.process.sigma(t)
    x0 = model(alpha * mu, torch.tensor(t, dtype=F64)).x0  # linear: the mean over eps is that of eps = 0
    left = {}
    for name, lam in (("score", noise**2), ("inverse-snr", 0.25), ("constant", 0.25)):
        pull = lam * REDDiff(weights=name).pull(alpha / sigma) * (mu - x0)
        left[name] = float((misfit + pull).norm() / misfit.norm())
    assert left["score"] < 1e-2 and left["inverse-snr"] > 0.9 and left["constant"] > 0.5


def test_what_is_not_linear_and_restarts_run():
    model = mixture()
    a = fs.operators.Magnitude(fs.operators.Identity()).fit((D,))
    y = a.measure(model.sample(2, seed=3), noise=0.1)
    x = fs.restore(model, y, a, 0.1, method="red-diff", options={"restarts": 2}, nfe=30, dtype=F64)
    assert x.shape == (2, D) and bool(torch.isfinite(x).all())


def test_the_default_fits_the_measurement():
    model, a = mixture(), half()
    y = a.measure(model.sample(3, seed=3), noise=0.05)
    x = fs.restore(model, y, a, 0.05, method="red-diff", nfe=60, dtype=F64)
    assert float((a(x) - y).abs().max()) < 0.3


def test_the_start_does_not_divide_the_noise_by_small_singular_values():
    model = mixture()
    a = fs.operators.Blur("gaussian", width=2.0).fit((D,))
    y = a.measure(model.sample(3, seed=3), noise=0.1)
    assert float(a.pinv(y).abs().max()) > 100
    x = fs.restore(model, y, a, 0.1, method="red-diff", nfe=10, dtype=F64)
    assert float(x.abs().max()) < 5


def test_bad_options_are_said():
    with pytest.raises(ValueError, match="weights must be 'inverse-snr'"):
        REDDiff(weights="snr")
    with pytest.raises(ValueError, match="rate must be above 0"):
        REDDiff(rate=0.0)
    model, a = mixture(), half()
    with pytest.raises(ValueError, match="weights='score' weigh the prior by the noise"):
        fs.restore(model, normal(1, D), a, method="red-diff", options={"weights": "score"})
