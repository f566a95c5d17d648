"""Whether a model and an operator fit, and the operator in a model's coordinates."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, half, latent, mixture, normal, wide
from torch import nn

import fewstep as fs
from fewstep.core.coordinates import Coordinates
from fewstep.denoisers.coordinates import DCT, CoordinateDenoiser
from fewstep.operators.noise import Gaussian, Poisson
from fewstep.processes.vp import VP
from fewstep.restoration.measured import Measured, Problem, brought, check_pair, check_states, in_coordinates, plain

SHAPE = (1, 3, 4)


class Still(nn.Module):
    def forward(self, x, noise, **condition):
        return x


class Exponential(Coordinates):
    def encode(self, data, condition):
        return data.log()

    def decode(self, x, condition):
        return x.exp()


def test_a_state_in_frequencies_is_measured_in_pixels():
    model = CoordinateDenoiser(Still(), VP(), DCT(SHAPE), "x0", SHAPE)
    a = fs.operators.Matrix(normal(5, 12, seed=1)).fit(SHAPE)
    seen = in_coordinates(a, model)
    x, y = normal(2, *SHAPE, seed=2), normal(2, 5, seed=3)
    assert not plain(model) and torch.allclose(seen(model.encode(x)), a(x))
    assert torch.allclose((seen(x) * y).sum(), (x * seen.adjoint(y)).sum())
    assert in_coordinates(a, fs.guide(mixture(), "known", picture=torch.zeros(6), mask=torch.zeros(6))) is a


def test_latents_are_measured_through_their_decoder():
    model, a = latent(), wide()
    seen = in_coordinates(a, model)
    z = normal(2, D, seed=2).requires_grad_()
    assert not seen.linear and torch.equal(seen(z), a(model.decode(z))) and seen.out == a.out
    assert bool(torch.autograd.grad(seen(z).square().sum(), z)[0].any())
    problem = Problem(model, seen, Gaussian(0.2))
    assert problem.of_data is a and Problem(mixture(), a, Gaussian(0.2)).of_data is a
    assert float(problem.energy(normal(2, 3))) == pytest.approx(3 * 0.04)
    assert float(Problem(mixture(), half(), Gaussian(0.2)).energy(normal(2, D))) == pytest.approx(
        3 * 0.04
    )  # of 6, 3 are seen


def test_what_is_brought_to_its_measurement_is_the_mode_around_it():
    a, x, y = wide(), normal(2, D, seed=2), normal(2, 3, seed=3)
    model = mixture()
    exact = brought(a, x, y, Problem(model, a, Gaussian(0.0)).ratio(y))
    assert torch.allclose(a(exact), y) and torch.allclose(exact, x + a.pinv(y - a(x)))
    matrix = a.matrix()
    there = torch.linalg.solve(matrix.mT @ matrix / 0.09 + torch.eye(D), matrix.mT @ y.mT / 0.09 + x.mT).mT
    assert torch.allclose(brought(a, x, y, Problem(model, a, Gaussian(0.3)).ratio(y)), there)


def test_methods_and_models_of_another_kind_are_refused_both_ways():
    with pytest.raises(
        ValueError, match="samples are latents, and 'pigdm' is for data: .*flowdps, psld.* restore with"
    ):
        check_states(latent(), "pigdm")
    with pytest.raises(
        ValueError, match="samples are data, and 'psld' is for latents: .*calibrated.*dps.* restore with"
    ):
        check_states(mixture(), "psld")
    for model in (latent(), mixture()):
        check_states(model, "dps")
    with pytest.raises(ValueError, match="samples are latents, and 'calibrated' is for data"):
        fs.posterior(latent(), wide(), 0.1)
    unknown = latent()
    unknown.autoencoder = nn.Identity()
    with pytest.raises(ValueError, match="does not say what shape its data have"):
        check_pair(unknown, wide())


def test_coordinates_that_are_not_linear_are_refused():
    model = CoordinateDenoiser(Still(), VP(), Exponential(), "x0", SHAPE)
    with pytest.raises(ValueError, match="coordinates are not linear"):
        in_coordinates(fs.operators.Identity().fit(SHAPE), model)


def test_a_measured_model_answers_as_it_would_and_clears_what_was_not_seen():
    model, a = mixture(), half()
    measured = Measured(model, a)
    x, t, y = normal(2, 6, seed=4), torch.tensor(0.3), normal(2, 6, seed=5)
    assert torch.equal(measured(x, t, y=y).x0, model(x, t).x0)
    told = measured.check_condition({"y": y}, 2, torch.device("cpu"))["y"]
    assert bool((told[:, a.mask == 0] == 0).all()) and torch.equal(told[:, a.mask > 0], y[:, a.mask > 0])


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="operator must be one of fewstep.operators, got 3"):
        check_pair(mixture(), 3)
    anyshape = mixture()
    anyshape.shape = None
    with pytest.raises(ValueError, match="takes any shape"):
        check_pair(anyshape, wide())
    assert float(Problem(mixture(), wide(), Gaussian(0.2)).noise.mean()) == pytest.approx(0.04)
    with pytest.raises(ValueError, match="takes Gaussian noise, not Poisson"):
        _ = Problem(mixture(), wide(), Poisson(10.0)).noise
