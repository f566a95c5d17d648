"""Couplings: permutations of the noise, the best ones, and what they do to its distribution."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats

from fewstep.core.methods import find, methods
from fewstep.training.couplings import assignment, immiscible, immiscible_knn, independent, optimal_transport

NAMES = ("independent-coupling", "minibatch-ot", "immiscible", "immiscible-knn")


def batch(n, shape=(3, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 1.5 + 0.7 * torch.randn(n, *shape, generator=generator), torch.randn(n, *shape, generator=generator)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cost(x0, eps, power=2):
    return float((x0 - eps).double().flatten(1).norm(dim=1).pow(power).mean())


def test_they_are_registered_as_couplings():
    found = {card.name for card in methods("coupling")}
    assert found == set(NAMES)
    x0, eps = batch(5)
    for name in NAMES:
        assert find(name, "training")(x0, eps, generator()).shape == eps.shape


@pytest.mark.parametrize("coupling", [independent, optimal_transport, immiscible])
def test_the_noise_is_permuted_and_stays_as_drawn(coupling):
    x0, eps = batch(37)
    out = coupling(x0, eps, generator())
    rows = {tuple(row.flatten().tolist()) for row in eps}
    assert {tuple(row.flatten().tolist()) for row in out} == rows and len(rows) == 37
    assert independent(x0, eps, generator()) is eps


@pytest.mark.parametrize("n", [1, 2, 5, 7])
@pytest.mark.parametrize("power", [1, 2])
def test_the_assignment_is_the_best_of_all_permutations(n, power):
    x0, eps = batch(n, seed=n)
    out = optimal_transport(x0, eps, generator()) if power == 2 else immiscible(x0, eps, generator(), bits=32)
    best = min(cost(x0, eps[list(order)], power) for order in itertools.permutations(range(n)))
    assert cost(x0, out, power) == pytest.approx(best, rel=1e-6)


def test_a_far_offset_leaves_the_best_assignment_alone():
    x0, eps = batch(64)
    assert torch.equal(optimal_transport(x0 + 1000, eps, generator()), optimal_transport(x0, eps, generator()))


def test_rounded_distances_cost_little_more():
    x0, eps = batch(200, (1, 4, 4))
    full, half, coarse = (cost(x0, immiscible(x0, eps, generator(), bits=bits), 1) for bits in (32, 16, 4))
    assert full <= half <= 1.0005 * full and full < coarse < 1.01 * full
    assert full < 0.98 * cost(x0, eps, 1)


def test_pooled_noise_stays_gaussian():
    pooled = torch.cat([immiscible(*batch(50, seed=seed), generator()) for seed in range(60)])
    assert stats.kstest(pooled.flatten().numpy(), "norm").pvalue > 0.01
    covariance = torch.cov(pooled.flatten(1).T)
    assert (covariance - torch.eye(6)).abs().max() < 0.08


def test_the_nearest_of_k_noises():
    x0, eps = batch(200)
    assert torch.equal(immiscible_knn(x0, eps, generator(), k=1), eps)
    costs = [cost(x0, immiscible_knn(x0, eps, generator(3), k=k)) for k in (1, 2, 4, 16)]
    assert costs == sorted(costs, reverse=True) and costs[-1] < 0.7 * costs[0]
    once, again, other = (immiscible_knn(x0, eps, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)
    # Every row is one of those drawn: its own or one of the generator's, in turn.
    drawn = generator(1)
    choices = torch.stack([eps, *(torch.randn(eps.shape, generator=drawn) for _ in range(3))])
    nearest = (choices - x0).flatten(2).norm(dim=2).argmin(0)
    assert torch.equal(once, choices[nearest, torch.arange(200)])


def test_bad_input_is_refused():
    x0, eps = batch(5)
    with pytest.raises(ValueError, match="immiscible-knn"):
        assignment(torch.zeros(4097, 4097))
    with pytest.raises(ValueError, match="0.3 GiB"):
        optimal_transport(torch.zeros(6000, 2), torch.zeros(6000, 2), generator())
    with pytest.raises(ValueError, match="bits must be 32, 16, or 2 to 8, got 1"):
        immiscible(x0, eps, generator(), bits=1)
    with pytest.raises(ValueError, match="k must be at least 1"):
        immiscible_knn(x0, eps, generator(), k=0)
    with pytest.raises(ValueError, match="one shape"):
        optimal_transport(x0, eps[:, :2], generator())
