"""Diffusion Evolution: x0 is the posterior mean where the fitness is a density, a run is the paper's algorithm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.cosine import Cosine
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.searching.evolution import Population, evolve, posterior_mean

F64 = torch.float64
MIXTURE = GaussianMixture(
    torch.tensor([1.0, 2.0, 1.5]),
    torch.tensor([[-1.0, -1.0], [1.0, 0.5], [0.0, 1.2]]),
    torch.tensor([0.1, 0.15, 0.08]),
    VP(),
)


def uniform(n: int, side: float) -> Tensor:
    """n^2 individuals of the uniform law on a square, one in each cell."""
    generator = torch.Generator().manual_seed(0)
    cell = torch.stack(torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"), -1).reshape(-1, 2)
    return ((cell + torch.rand(n * n, 2, generator=generator, dtype=F64)) / n * 2 - 1) * side


def bumps(x: Tensor) -> Tensor:
    centres = torch.tensor([[2.0, 2.0], [-2.0, -2.0]]).to(x)
    return torch.exp(-(x[:, None] - centres).square().sum(-1) / 0.5).sum(1)


@pytest.mark.parametrize("t", [0.05, 0.2, 0.5, 1.0])
def test_where_the_fitness_is_a_density_x0_is_the_posterior_mean(t):
    time = torch.tensor(t, dtype=F64)
    alpha, sigma = MIXTURE.process.alpha(time), MIXTURE.process.sigma(time)
    x = alpha * MIXTURE.sample(128, 1) + sigma * Noise(2).normal(0, (128, 2), dtype=F64)
    individuals = uniform(64, 3.0)
    ours = posterior_mean(x, individuals, MIXTURE.log_likelihood(individuals), alpha, sigma)
    exact = MIXTURE(x, time).x0
    assert float((ours - exact).norm() / exact.norm()) < 0.02


def test_of_a_crowd_of_another_law_the_density_is_divided_out():
    time, law = torch.tensor(0.3, dtype=F64), GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.5, VP())
    alpha, sigma = MIXTURE.process.alpha(time), MIXTURE.process.sigma(time)
    x = alpha * MIXTURE.sample(128, 1) + sigma * Noise(2).normal(0, (128, 2), dtype=F64)
    crowd, exact = law.sample(20_000, 3), MIXTURE(x, time).x0
    fit, own = MIXTURE.log_likelihood(crowd), law.log_likelihood(crowd)
    errors = [
        float((posterior_mean(x, crowd, w, alpha, sigma) - exact).norm() / exact.norm()) for w in (fit - own, fit)
    ]
    assert errors[0] < 0.04 and errors[1] > 0.08


def test_the_weights_by_hand_and_the_limits():
    x = Noise(0).normal(0, (5, 2), dtype=F64)
    weights, alpha, sigma = torch.tensor([0.2, 0.0, 1.0, 3.0, 0.5], dtype=F64), 0.8, 0.6
    kernel = torch.exp(-(x[:, None] - alpha * x).square().sum(-1) / (2 * sigma**2)) * weights
    expected = kernel @ x / kernel.sum(1, keepdim=True)
    one = torch.tensor(1.0, dtype=F64)
    torch.testing.assert_close(posterior_mean(x, x, weights.log(), alpha * one, sigma * one), expected)
    # No signal: the weighted mean of all. No noise: the nearest that counts.
    torch.testing.assert_close(
        posterior_mean(x, x, weights.log(), 0 * one, one), ((weights / weights.sum()) @ x).expand(5, 2)
    )
    nearest = posterior_mean(x, x, weights.log(), one, 0 * one)
    torch.testing.assert_close(nearest[[0, 2, 3, 4]], x[[0, 2, 3, 4]])
    # In a projection that forgets the second element.
    flat = posterior_mean(x, x, weights.log(), alpha * one, sigma * one, torch.tensor([[1.0], [0.0]], dtype=F64))
    kernel = torch.exp(-((x[:, None, 0] - alpha * x[:, 0]) ** 2) / (2 * sigma**2)) * weights
    torch.testing.assert_close(flat, kernel @ x / kernel.sum(1, keepdim=True))


def test_it_is_algorithm_1_by_ddim():
    plan = fs.plan(Cosine(), "ddim", 4, "uniform")
    found = evolve(bumps, (2,), 16, plan=plan, spread=2.0, seed=3, dtype=F64)
    x, process = Noise(3).normal(0, (16, 2), dtype=F64) * plan.start[1], Cosine()
    trace = []
    for t, s in zip(plan.times, plan.times[1:], strict=False):
        alpha, sigma = process.alpha(t), process.sigma(t)
        trace.append(bumps(2.0 * x))
        kernel = torch.exp(-(x[:, None] - alpha * x).square().sum(-1) / (2 * sigma**2)) * trace[-1]
        x0 = kernel @ x / kernel.sum(1, keepdim=True)
        x = process.alpha(s) * x0 + process.sigma(s) * (x - alpha * x0) / sigma
    torch.testing.assert_close(found.population, 2.0 * x)
    torch.testing.assert_close(found.trace, torch.stack([*trace, bumps(2.0 * x)]))
    assert found.calls == 5 * 16 and found.best_fitness == float(found.trace.max())
    torch.testing.assert_close(bumps(found.best[None])[0], found.trace.max())
    torch.testing.assert_close(found.fitness, bumps(found.population))


def test_the_population_finds_both_peaks():
    found = evolve(bumps, (2,), 64, 25, spread=2.0, seed=0, density=0.3)
    near = torch.cdist(found.population, torch.tensor([[2.0, 2.0], [-2.0, -2.0]])) < 1.0
    assert bool(near.any(0).all()) and float(near.any(1).double().mean()) > 0.8 and found.best_fitness > 0.98
    assert found.calls == 64 * 26
    again = evolve(bumps, (2,), 64, 25, spread=2.0, seed=0, density=0.3)
    assert torch.equal(found.population, again.population)


def test_the_density_is_divided_out():
    x = torch.cat([torch.zeros(9, 1), torch.ones(1, 1)]).double()  # nine in one place and one in another
    process = EDM()
    t = torch.tensor(5.0, dtype=F64)
    for density, share in ((None, 0.1), (0.05, 0.5)):
        model = Population(lambda x: torch.ones(len(x)), process, (1,), density=density)
        assert float(model(x, t).x0[0]) == pytest.approx(share, abs=0.02)


def test_distances_in_a_projection_scale_to_many_elements():
    def fitness(x: Tensor) -> Tensor:
        return torch.exp(-x.square().mean((1, 2)))

    plain = evolve(fitness, (10, 20), 48, 20, seed=1)
    latent = evolve(fitness, (10, 20), 48, 20, seed=1, latent=2)
    # Distances of 200 elements are all alike but those to oneself: nobody mixes with anybody, and nothing is learned.
    assert float(latent.fitness.mean()) > 0.7 > float(plain.fitness.mean())
    assert latent.population.shape == (48, 10, 20)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fitness": lambda x: x}, r"the fitness must return a number an individual, \(64,\), got a tensor of shape"),
        ({"fitness": lambda x: -x.square().sum(1)}, "the fitness must be finite and at least 0, and above 0 somewhere"),
        ({"fitness": lambda x: 0 * x[:, 0]}, "above 0 somewhere, got 0 to 0: give mapping="),
        ({"mapping": lambda f: f * math.nan}, "the mapping of the fitness must be finite"),
        ({"population": 1}, "population must be a whole number of at least 2, got 1"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"shape": (0,)}, "shape must be a whole number of at least 1, got 0"),
        ({"spread": 0.0}, "spread must be positive and finite, got 0"),
        ({"density": -1.0}, "density must be positive and finite, got -1"),
        ({"latent": 3}, "latent must be a whole number from 1 to 2, got 3"),
        ({"plan": "ddim"}, "plan must be a plan, as fs.plan makes, got 'ddim'"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        evolve(**{"fitness": bumps, "shape": (2,), **options})
