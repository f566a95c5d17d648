"""NRLG's optimising scheme; the closed score itself is compared in test_moments."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, gaussian, half, mixture, normal, wide

import fewstep as fs
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.vp import VP
from fewstep.restoration.moments import Moments
from fewstep.restoration.nrlg import NRLG

F64 = torch.float64
OPTIMISING = {"scheme": "optimising"}


def test_no_scheme_goes_back_through_the_network(monkeypatch):
    model, a = mixture(), wide()
    y = a.measure(model.sample(2, seed=3), noise=0.1)
    calls = []
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **how: calls.append(1))
    monkeypatch.setattr(torch.Tensor, "backward", lambda *args, **how: calls.append(1))
    for scheme in ("sampling", "optimising"):
        how = {"method": "nrlg", "options": {"scheme": scheme}, "nfe": 8, "dtype": F64, "report": True}
        told = fs.restore(model, y, a, 0.1, **how)
        assert (told.nfe, told.passes) == (8, 8) and bool(torch.isfinite(told.samples).all())
    assert not calls


def test_where_the_prior_says_nothing_it_stands_still_at_what_was_measured():
    """x0_hat = x / alpha: the mean of the gradient over eps, that of eps = 0, is zero where `A mu = y` alone."""
    a, process = wide(), VP()
    model = GaussianMixture(torch.ones(1), torch.zeros(1, D), 1e14, process)
    y = a.measure(normal(2, D, seed=3), noise=0.2)
    fits = a.pinv(y) + a.null(normal(2, D, seed=4))
    for log_snr in (-2.0, 0.0, 3.0):
        t = torch.tensor(process.time(log_snr), dtype=F64)
        for mu, still in ((fits, True), (fits + normal(2, D, seed=5), False)):
            x0 = Moments(model, a, 0.2, "nrlg")(process.alpha(t) * mu, t, y=y).x0
            assert (float((mu - x0).abs().max()) < 1e-6) == still


def test_it_ends_at_the_mode_of_a_gaussian_posterior():
    model, a = gaussian(), half()
    y = a.measure(model.sample(1, seed=3), noise=0.3)
    how = {"method": "nrlg", "options": OPTIMISING, "nfe": 800, "dtype": F64, "timesteps": "log-snr", "n": 2}
    mu = fs.restore(model, y, a, 0.3, **how)[0]
    assert float((mu - model.posterior(a, y[0], 0.3).means[0]).abs().max()) < 1e-2


def test_bad_options_are_said():
    with pytest.raises(ValueError, match="scheme must be 'sampling' or 'optimising', got 'both'"):
        NRLG(scheme="both")
    with pytest.raises(ValueError, match="rate must be above 0, got 0"):
        NRLG(rate=0)
    model, a = mixture(), half()
    with pytest.raises(ValueError, match="is a chain of its own, not a denoiser"):
        fs.posterior(model, a, 0.1, "nrlg", scheme="optimising")
    with pytest.raises(ValueError, match="leave the solver out"):
        fs.restore(model, torch.zeros(1, D), a, 0.1, method="nrlg", options=OPTIMISING, solver="ddim")
