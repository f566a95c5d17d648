"""The filter: weights that are constant where the chain is exact, and a law that is exact where it is not."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, gaussian, half, mixture
from restoration.test_calibrated import true_calibration

import fewstep as fs
from fewstep.metrics.sliced_wasserstein import sliced_wasserstein
from fewstep.restoration.particles import Particles

F64 = torch.float64


@pytest.mark.parametrize("pull", ["covariance", "jacobian"])
def test_on_a_gaussian_only_the_start_is_weighed(pull):
    """The proposal is the exact law of the next state given y, so weights change by a function of the start alone."""
    model, a = gaussian(), half()
    y = a.measure(model.sample(1, seed=3), noise=0.3)
    options = {"pull": pull, "calibration": true_calibration(model)}
    made = fs.restore(model, y, a, 0.3, particles=400, n=400, nfe=6, options=options, dtype=F64, report=True)
    sizes = made.report["effective sizes"]
    assert sizes.shape == (7, 1)
    # At pure noise x0_hat is nearly the same for all particles, and after it nothing is weighed any more.
    assert float(sizes.min()) > 399
    truth = model.posterior(a, y, 0.3)
    exact = truth.basis * truth.variances[0] @ truth.basis.T
    assert float((torch.cov(made.samples[0].T) - exact).norm() / exact.norm()) < 0.2
    assert float((made.samples[0].mean(0) - truth.means[0]).norm()) < 0.15


@pytest.mark.slow
def test_more_particles_are_nearer_to_a_mixtures_posterior():
    model, a = mixture(), half()
    fs.calibrate(model, model.sample(2000, seed=1), n=2000)
    y = a.measure(model.sample(4, seed=8), noise=0.3)
    truths = [model.posterior(a, one[None], 0.3).sample(400, seed=2) for one in y]

    def distance(**how):
        made = fs.restore(model, y, a, 0.3, nfe=30, dtype=F64, **how)
        return sum(sliced_wasserstein(x, t).value for x, t in zip(made, truths, strict=True)) / 4

    assert distance(particles=400, n=400) < 0.8 * distance(n=400)


def test_populations_do_not_mix_and_draws_belong_to_seed_and_number():
    model, a = mixture(), half()
    fs.calibrate(model, model.sample(64, seed=1), n=64, levels=4)
    y = a.measure(model.sample(3, seed=3), noise=0.1)
    together = fs.restore(model, y, a, 0.1, particles=8, n=5, nfe=4, dtype=F64)
    assert together.shape == (3, 5, D)
    split = fs.restore(model, y, a, 0.1, particles=8, n=5, nfe=4, dtype=F64, batch_size=11)
    assert torch.allclose(together, split, atol=1e-10)
    assert torch.allclose(fs.restore(model, y[:1], a, 0.1, particles=8, n=5, nfe=4, dtype=F64)[0], together[0])


def test_what_does_not_fit_is_said():
    model, a = mixture(), half()
    fs.calibrate(model, model.sample(64, seed=1), n=64, levels=4)
    y = a.measure(model.sample(1, seed=3), noise=0.1)
    with pytest.raises(ValueError, match="at least 2 particles, got 1"):
        fs.restore(model, y, a, 0.1, particles=1)
    with pytest.raises(ValueError, match="9 samples cannot be drawn from 8 particles"):
        fs.restore(model, y, a, 0.1, particles=8, n=9)
    with pytest.raises(ValueError, match="leave method='dps' out"):
        fs.restore(model, y, a, 0.1, particles=8, method="dps")
    with pytest.raises(ValueError, match="pull must be"):
        Particles(pull="up")
