"""ReSample's draw is the product of its two laws; its fits meet the measurement."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, gaussian, half, latent, normal, wide

import fewstep as fs
from fewstep.core.noise import Noise
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.restoration.resample import ReSample
from fewstep.sampling.ddim import ancestral

F64 = torch.float64


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
def test_it_is_algorithm_1(process):
    """Two steps: the product of the two normal laws by their precisions, then the last fit."""
    model, a, times = latent(process), half(), [0.6, 0.4, process.t_zero]
    y = a.measure(model.sample(1, seed=3))
    found = fs.restore(model, y, a, method="resample", options={"gamma": 5.0}, timesteps=times, dtype=F64)
    basis, scale, source = model.autoencoder.basis, model.autoencoder.scale, Noise(0)

    def kept(z0):  # the nearest latents that fit y: A = mask is a projection in the turned coordinates
        return z0 + a(y - a(model.decode(z0))) @ basis.mT / scale

    x = source.normal(0, (1, D), "cpu", F64) * process.sigma(0.6)
    z0 = model(x, torch.tensor(0.6, dtype=F64)).x0
    eps = (x - process.alpha(0.6) * z0) / process.sigma(0.6)
    ahead = process.alpha(0.4) * z0 + process.sigma(0.4) * eps
    one, two = 1 / process.sigma(0.4) ** 2, 1 / (5.0 * ancestral(process, 0.6, 0.4, 1.0) ** 2)
    mean = (one * process.alpha(0.4) * kept(z0) + two * ahead) / (one + two)
    x = mean + (one + two) ** -0.5 * source.normal(1, (1, D), "cpu", F64)
    assert torch.allclose(found, model.decode(kept(model(x, torch.tensor(0.4, dtype=F64)).x0)), atol=1e-8)


@pytest.mark.parametrize("latents", [0.0, 1.0])
def test_what_comes_out_fits_as_well_as_the_noise_allows(latents):
    model, a = latent(), wide()
    truth = model.sample(4, seed=3)
    for noise in (0.0, 0.3):
        y = a.measure(truth, noise=noise)
        told = fs.restore(
            model, y, a, noise, method="resample", options={"latents": latents}, n=2, nfe=6, dtype=F64, report=True
        )
        assert float(told.residual.max()) <= noise + 1e-6


def test_what_is_not_linear_and_rarer_fits_run():
    model = latent()
    a = fs.operators.Magnitude(fs.operators.Identity()).fit((D,))
    y = a.measure(model.sample(2, seed=3), noise=0.1)
    told = fs.restore(model, y, a, 0.1, method="resample", options={"every": 3}, nfe=8, n=2, dtype=F64, report=True)
    assert told.nfe == told.passes == 8 and float(told.residual.mean()) < 0.2


def test_bad_options_are_said():
    with pytest.raises(ValueError, match="gamma must be at least 0 and latents 0 to 1, got -1 and 0.5"):
        ReSample(gamma=-1)
    with pytest.raises(ValueError, match="inner and every must be at least 1, got 0 and 1"):
        ReSample(inner=0)
    with pytest.raises(ValueError, match="samples are data, and 'resample' is for latents: .*calibrated.* restore"):
        fs.restore(gaussian(), normal(1, 3), wide(), 0.1, method="resample")
