"""The posteriors on a grid are the exact ones."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from claims.grids import Cell, cell, law, measured, posterior
from fewstep.operators.noise import Gaussian

F64 = torch.float64


def test_of_a_linear_measurement_it_is_the_mixture_in_closed_form():
    model, noise = law(2, 0), Gaussian(0.2)
    a = fs.operators.Matrix(torch.tensor([[0.6, 0.8]], dtype=F64)).fit((2,))
    y = a.measure(model.sample(1, seed=5), noise, seed=0)
    grid, exact = posterior(model, a, noise, y[0], -3.0, 3.0), model.posterior(a, y, noise)
    weights, means = exact.log_weights.exp(), exact.means
    mean = weights @ means
    covariance = (weights[:, None, None] * (exact.covariances() + torch.einsum("ki,kj->kij", means, means))).sum(0)
    assert float(grid.masses.sum()) == pytest.approx(1)
    assert torch.allclose(grid.mean(), mean, atol=1e-6)
    assert torch.allclose(grid.covariance(), covariance - torch.outer(mean, mean), atol=1e-6)
    drawn = grid.draws(20_000, seed=1)
    assert float((drawn.mean(0) - mean).abs().max()) < 0.02


def test_counts_follow_bayes_rule():
    model, (a, noise) = law(1, 0), measured("counts", 0)
    y = a.measure(model.sample(1, seed=5), noise, seed=0)
    grid = posterior(model, a, noise, y[0], -1.0, 7.0)
    k, x = y[0, 0] * noise.peak, grid.points[:, 0]
    std = model.covariances()[:, 0, 0].sqrt()
    density = (torch.distributions.Normal(model.means[:, 0], std).log_prob(x[:, None]).exp()).mean(1)
    weights = density * torch.distributions.Poisson((x.clamp_min(1e-12)) * noise.peak).log_prob(k.round()).exp()
    assert float((grid.masses - weights / weights.sum()).abs().max()) < 1e-10


def test_the_signs_of_exact_draws_have_their_mass():
    made = cell("magnitudes", 0)
    exact = torch.stack([grid.draws(4000, seed=4) for grid in made.exact])
    assert made.mass(exact) < 0.02 < made.mass(-exact) and isinstance(made, Cell)
    assert made.distance(exact, 0) < 0.2 * made.distance(-exact, 0)
