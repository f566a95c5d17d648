"""A model of latents ("latent"), and principal components as an autoencoder ("principal-components")."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.core.pictures import data_shape
from fewstep.data.digits import load
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.denoisers.latent import Latent, PrincipalComponents
from fewstep.processes.vp import VP

F64 = torch.float64
DIGITS = load("train")[0].double()


def model(latents=4):
    made = PrincipalComponents.of(DIGITS, latents)
    return Latent(GaussianMixture(torch.ones(1), torch.zeros(1, latents), 1.0, VP()), made, (-1, 1))


def test_the_error_is_the_variance_that_is_left_out():
    values = torch.linalg.eigvalsh(torch.cov(DIGITS.flatten(1).mT, correction=0)).flip(0)
    for count in (1, 16, 64):
        made = PrincipalComponents.of(DIGITS, count)
        latents = made.encode(DIGITS)
        off = (made.decode(latents) - DIGITS).flatten(1).square().sum(1).mean()
        assert float(off) == pytest.approx(float(values[count:].sum()), abs=1e-9)
        assert torch.allclose(made.encode(made.decode(latents)), latents)
        assert float(latents.square().mean()) == pytest.approx(1) and float(latents.mean(0).abs().max()) < 1e-9


def test_samples_are_decoded():
    made = model()
    x = fs.sample(made, 3, steps=4, dtype=F64)
    assert x.shape == (3, 1, 8, 8) and data_shape(made) == (1, 8, 8) and made.value_range == (-1.0, 1.0)
    assert torch.equal(x, made.decode(fs.sample(made.model, 3, steps=4, dtype=F64)))
    z = torch.randn(2, 4, dtype=F64)
    assert torch.equal(made(z, torch.tensor(0.3)).x0, made.model(z, torch.tensor(0.3)).x0)
    assert torch.allclose(made.encode(made.decode(z)), z)


def test_what_does_not_fit_is_said():
    made = model()
    with pytest.raises(ValueError, match="has an autoencoder already"):
        Latent(made, made.autoencoder)
    with pytest.raises(ValueError, match=r"latents have the shape \(4,\), and the model's states \(3,\)"):
        Latent(GaussianMixture(torch.ones(1), torch.zeros(1, 3), 1.0, VP()), made.autoencoder)
    with pytest.raises(ValueError, match="have 1 to 64 components, not 65"):
        PrincipalComponents.of(DIGITS, 65)
    with pytest.raises(ValueError, match=r"a basis \(K, 64\) and a positive scale"):
        PrincipalComponents(torch.zeros(1, 8, 8), torch.eye(3))
