"""Chains of degradations: the algebra of averaging, exact laws, fidelity."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.processes.restoration_chain import RestorationChain, average, spread

F64 = torch.float64
CHAIN = RestorationChain((0.9, 0.8, 0.5), (0.3, 0.4, 0.6), (2, 1, 3))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_averaging_and_its_pseudo_inverse(factor):
    """All four of Penrose's conditions, as matrices; averaging white noise gives white noise."""
    x = torch.eye(72, dtype=F64).view(72, 2, 6, 6)
    a = average(x, factor).flatten(1).T
    plus = spread(torch.eye(len(a), dtype=F64).view(-1, 2, 6 // factor, 6 // factor), factor).flatten(1).T
    one = torch.eye(len(a), dtype=F64)
    torch.testing.assert_close(a @ plus, one)
    torch.testing.assert_close((plus @ a).T, plus @ a)
    torch.testing.assert_close(plus @ a @ plus, plus)
    torch.testing.assert_close(plus, torch.linalg.pinv(a))
    torch.testing.assert_close(a @ a.T, one / factor**2)


def test_the_marginal_is_that_of_the_steps():
    """Mean and covariance of each level from the recursion on a Gaussian, as matrices, against the closed form."""
    mean, covariance = normal(1, 2, 6, 6), torch.zeros(72, 72, dtype=F64)
    x0, state = mean, mean
    for k in range(1, 4):
        pixels = state[0].numel()
        matrix = CHAIN.fades[k - 1] * average(
            torch.eye(pixels, dtype=F64).view(pixels, *state.shape[1:]), CHAIN.factors[k - 1]
        )
        matrix = matrix.flatten(1).T
        state = CHAIN.step(state, k, torch.zeros(1, *CHAIN.shape(k, (2, 6, 6)), dtype=F64))
        covariance = matrix @ covariance @ matrix.T + CHAIN.stds[k - 1] ** 2 * torch.eye(len(matrix), dtype=F64)
        torch.testing.assert_close(CHAIN.operator(x0, k), state)
        torch.testing.assert_close(covariance, CHAIN.sigma(k) ** 2 * torch.eye(len(matrix), dtype=F64))
    assert CHAIN.shape(3, (2, 6, 6)) == (2, 1, 1) and CHAIN.block(3) == 6
    assert CHAIN.alpha(3) == pytest.approx(0.36) and CHAIN.alpha(0) == 1 and CHAIN.sigma(0) == 0


def test_draws_have_the_marginal_of_a_gaussian():
    """Gaussian data of correlated pixels, degraded step by step and at once: variances of the level's pixels."""
    n = 20_000
    x0 = 0.7 * normal(n, 1, 1, 1).expand(n, 1, 6, 6) + 0.5 * normal(n, 1, 6, 6, seed=1)
    y = x0
    for k in range(1, 4):
        y = CHAIN.step(y, k, normal(n, *CHAIN.shape(k, (1, 6, 6)), seed=10 + k))
        at_once = CHAIN.degrade(x0, k, normal(n, *CHAIN.shape(k, (1, 6, 6)), seed=20 + k))
        expected = CHAIN.alpha(k) ** 2 * (0.49 + 0.25 / CHAIN.block(k) ** 2) + CHAIN.sigma(k) ** 2
        for drawn in (y, at_once):
            assert float(drawn.var(0).mean()) == pytest.approx(expected, rel=0.03)


def test_preserving():
    chain = RestorationChain.preserving((0.9, 0.6, 0.05), (2, 2, 2))
    for k, alpha in enumerate((0.9, 0.6, 0.05), 1):
        assert chain.alpha(k) == pytest.approx(alpha)
        assert chain.alpha(k) ** 2 + chain.sigma(k) ** 2 == pytest.approx(1)
    noise = normal(5, 3, 1, 1)
    torch.testing.assert_close(chain.start((3, 8, 8), noise), math.sqrt(1 - 0.05**2) * noise)


def test_fidelity_is_a_log_likelihood():
    x0, other, y = normal(4, 2, 6, 6), normal(4, 2, 6, 6, seed=1), normal(4, 2, 3, 3, seed=2)
    law = torch.distributions.Normal(CHAIN.operator(x0, 2), CHAIN.sigma(2))
    elsewhere = torch.distributions.Normal(CHAIN.operator(other, 2), CHAIN.sigma(2))
    expected = (elsewhere.log_prob(y) - law.log_prob(y)).flatten(1).mean(1)
    torch.testing.assert_close(CHAIN.fidelity(x0, y, 2) - CHAIN.fidelity(other, y, 2), expected)
    many = CHAIN.degrade(normal(1, 1, 6, 6).expand(5000, 1, 6, 6), 2, normal(5000, 1, 3, 3, seed=3))
    found = CHAIN.fidelity(normal(1, 1, 6, 6).expand(5000, 1, 6, 6), many, 2)
    assert float(found.mean()) == pytest.approx(0.5, rel=0.02)


def test_points_have_no_blocks():
    chain = RestorationChain.preserving((0.8, 0.1))
    assert chain.shape(2, (2,)) == (2,)
    x = normal(3, 2)
    assert torch.equal(chain.adjust(x, 2), x) and torch.equal(average(x, 1), x)


def test_bad_input():
    with pytest.raises(ValueError, match="one number a level"):
        RestorationChain((0.9, 0.5), (0.1,))
    with pytest.raises(ValueError, match="fades must lie"):
        RestorationChain((1.1,), (0.1,))
    with pytest.raises(ValueError, match="alphas must fall"):
        RestorationChain.preserving((0.5, 0.9))
    with pytest.raises(ValueError, match="do not divide"):
        CHAIN.shape(3, (1, 8, 8))
    with pytest.raises(ValueError, match="last level has shape"):
        CHAIN.start((1, 6, 6), normal(3, 1, 6, 6))
