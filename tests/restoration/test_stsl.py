"""STSL's probe is the trace in the mean, and without it the step is that of DPS."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, gaussian, half, latent, mixture, normal, wide

import fewstep as fs
from fewstep.restoration.stsl import STSL, probed, scored

F64 = torch.float64


def test_probes_are_the_exact_trace_in_the_mean():
    model, n, h = gaussian(), 4096, 0.03
    t = torch.tensor(0.4, dtype=F64)
    alpha, sigma = model.process.alpha(0.4), model.process.sigma(0.4)
    x, eps = normal(1, D, seed=7).expand(n, -1), normal(n, D, seed=8)

    def score(x):
        return scored(model(x, t).x0, x, alpha, sigma)

    found = probed(eps, score(x), score(x + h * eps), h)
    exact = -float((1 / (alpha**2 * model.variances[0] + sigma**2)).sum())
    assert abs(float(found.mean()) - exact) < 3 * float(found.std()) / n**0.5


def test_without_a_probe_it_is_dps():
    model, a = mixture(), wide()
    y = a.measure(model.sample(3, seed=3), noise=0.1)
    how = {"nfe": 5, "dtype": F64}
    mine = fs.restore(model, y, a, 0.1, method="stsl", options={"probe": 0.0, "zeta": 0.4}, **how)
    theirs = fs.restore(model, y, a, 0.1, method="dps", options={"zeta": 0.4}, **how)
    assert torch.allclose(mine, theirs, atol=1e-10)
    assert not torch.allclose(
        mine, fs.restore(model, y, a, 0.1, method="stsl", options={"zeta": 0.4}, nfe=10, dtype=F64)
    )


def test_in_latents_it_differentiates_the_decoder():
    """On a linear autoencoder that turns and scales, a model of latents measured through it is one of the data."""
    model, a = latent(), half()
    turn, mean = model.autoencoder.scale * model.autoencoder.basis.mT, model.autoencoder.mean
    y = a.measure(model.sample(3, seed=3), noise=0.1)
    how = {"method": "stsl", "options": {"zeta": 0.4}, "nfe": 8, "dtype": F64}
    through = fs.restore(model, y, a, 0.1, **how)
    inside = fs.restore(model.model, y - a(mean[None]), fs.operators.Matrix(a.matrix() @ turn), 0.1, **how)
    assert torch.allclose(through, model.decode(inside), atol=1e-10)


def test_evaluations_are_counted_and_bad_options_said():
    assert STSL().each == 2 and STSL(inner=3).each == 6 and STSL(probe=0.0).each == 1
    model, a = mixture(), half()
    y = a.measure(model.sample(2, seed=3), noise=0.1)
    told = fs.restore(model, y, a, 0.1, method="stsl", options={"inner": 2}, nfe=8, n=1, report=True, dtype=F64)
    assert told.nfe == 8 and bool(torch.isfinite(told.samples).all())
    with pytest.raises(ValueError, match="zeta and probe must be at least 0"):
        STSL(probe=-1.0)
