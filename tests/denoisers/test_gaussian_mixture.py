"""The mixture against brute force: quadrature, autograd, and its own samples. Method: gaussian-mixture."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.methods import find
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64


def line(process, predicts="x0") -> GaussianMixture:
    return GaussianMixture(
        torch.tensor([1.0, 3.0]), torch.tensor([[-1.0], [0.5]]), torch.tensor([0.04, 0.3], dtype=F64), process, predicts
    )


def test_it_is_registered():
    assert find("gaussian-mixture") is GaussianMixture


@pytest.mark.parametrize("t", [0.05, 0.4, 0.95])
@pytest.mark.parametrize("process", [VP(), Flow()], ids=lambda p: p.name)
def test_against_quadrature(process, t):
    """E[x0 | x_t], E[eps | x_t] and p_t as integrals over x0 of the prior times N(x_t; alpha x0, sigma^2)."""
    grid = torch.linspace(-8, 8, 400_001, dtype=F64)

    def normal(u, mean, var):
        return torch.exp(-0.5 * (u - mean) ** 2 / var) / math.sqrt(2 * math.pi * var)

    prior = 0.25 * normal(grid, -1.0, 0.04) + 0.75 * normal(grid, 0.5, 0.3)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = torch.tensor([[-1.5], [-0.2], [0.0], [0.9]], dtype=F64)
    time = torch.tensor(t, dtype=F64)
    x0, eps = line(process)(x, time).x0, line(process, "eps")(x, time).eps
    log_density = line(process).log_likelihood(x, time)
    clean = line(process).log_likelihood(x)
    for i, at in enumerate(x[:, 0]):
        joint = prior * normal(at, alpha * grid, sigma**2)
        density = torch.trapezoid(joint, grid)
        mean = torch.trapezoid(joint * grid, grid) / density
        assert float(x0[i, 0]) == pytest.approx(float(mean), abs=1e-8)
        assert float(eps[i, 0]) == pytest.approx(float((at - alpha * mean) / sigma), abs=1e-7)
        assert float(log_density[i]) == pytest.approx(math.log(density), abs=1e-8)
        expected = 0.25 * normal(at, -1.0, 0.04) + 0.75 * normal(at, 0.5, 0.3)
        assert float(clean[i]) == pytest.approx(math.log(expected), abs=1e-10)


@pytest.mark.parametrize("predicts", ["x0", "eps"])
@pytest.mark.parametrize("process", [VP(), Flow(), EDM(), Discrete.linear(steps=50)], ids=lambda p: p.name)
def test_the_score_is_the_gradient_of_the_log_density(process, predicts, make_mixture):
    model = make_mixture(process, (2, 3), predicts)
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64).requires_grad_(True)
    t = process.t_min + torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=F64) * (process.t_max - process.t_min)
    (gradient,) = torch.autograd.grad(model.log_likelihood(x, t).sum(), x)
    torch.testing.assert_close(model(x.detach(), t).score, gradient, rtol=1e-6, atol=1e-8)


def test_both_kinds_and_a_time_a_sample(make_mixture):
    process = VP()
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    by_x0, by_eps = (make_mixture(process, (2, 4), kind)(x, t) for kind in ("x0", "eps"))
    torch.testing.assert_close(by_x0.eps, by_eps.eps, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(by_x0.x0, by_eps.x0, rtol=1e-8, atol=1e-9)
    for i in range(3):
        alone = make_mixture(process, (2, 4))(x[i : i + 1], t[i])
        torch.testing.assert_close(alone.x0[0], by_x0.x0[i], rtol=1e-10, atol=1e-12)


def test_both_ends_are_finite_and_right(make_mixture):
    process = Flow()
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    mixture = make_mixture(process)
    torch.testing.assert_close(mixture(x, torch.tensor(0.0, dtype=F64)).x0, x)  # the clean sample is itself
    mean = mixture.log_weights.exp() @ mixture.means
    torch.testing.assert_close(mixture(x, torch.tensor(1.0, dtype=F64)).x0, mean.expand(3, 2))
    assert float(make_mixture(process, predicts="eps")(x, torch.tensor(0.0, dtype=F64)).eps.abs().max()) == 0
    torch.testing.assert_close(make_mixture(process, predicts="eps")(x, torch.tensor(1.0, dtype=F64)).eps, x)


def test_any_form_of_covariance():
    process, means, weights = VP(), torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0)), torch.ones(3)
    x, t = torch.randn(5, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(1)), torch.tensor(0.3, dtype=F64)
    forms = [0.4, torch.full((3,), 0.4), torch.full((3, 4), 0.4), 0.4 * torch.eye(4).expand(3, 4, 4)]
    first, *others = (GaussianMixture(weights, means, c, process)(x, t).x0 for c in forms)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-6, atol=1e-7)
    spread = torch.tensor([0.1, 0.2, 0.3])
    one = GaussianMixture(weights, means, spread, process)(x, t).x0
    torch.testing.assert_close(GaussianMixture(weights, means, spread[:, None].expand(3, 4), process)(x, t).x0, one)
    assert not torch.allclose(one, first)


def test_samples_have_the_mixtures_moments(make_mixture):
    model = make_mixture(VP(), (3,))
    n = 200_000
    x = model.sample(n, seed=1)
    assert torch.equal(model.sample(7, seed=1), model.sample(7, seed=1)) and x.shape == (n, 3)
    weights = model.log_weights.exp()
    mean = weights @ model.means
    basis = model.basis.view(3, 5, 3).permute(1, 0, 2)
    within = basis @ torch.diag_embed(model.variances) @ basis.mT
    between = model.means - mean
    covariance = torch.einsum("k,kij->ij", weights, within) + torch.einsum("k,ki,kj->ij", weights, between, between)
    tolerance = 5 * math.sqrt(float(covariance.diagonal().max()) / n)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=tolerance)
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0, atol=2 * tolerance)
    # Mean log-likelihood of its own samples is larger than of anything moved.
    assert float(model.log_likelihood(x).mean()) > float(model.log_likelihood(x + 0.3).mean())


def test_float32_state_gives_float32():
    value = line(VP())(torch.zeros(2, 1), torch.tensor(0.5)).value
    assert value.dtype == torch.float32


@pytest.mark.parametrize(
    "arguments,message",
    [
        ((torch.ones(3), torch.zeros(2, 4), 1.0), r"weights must be 2 positive numbers, got shape \(3,\)"),
        ((torch.tensor([1.0, 0.0]), torch.zeros(2, 4), 1.0), "weights must be 2 positive numbers"),
        ((torch.ones(2), torch.zeros(2, 4), torch.ones(2, 3)), r"covariances must be \(2, 4, 4\), \(2, 4\) or \(2,\)"),
        ((torch.ones(2), torch.zeros(2, 4), -1.0), "a covariance has a negative variance in some direction"),
        (
            (torch.ones(1), torch.zeros(1, 2), torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])),
            "every covariance must be symmetric",
        ),
        ((torch.ones(2), torch.zeros(2, 4), 1.0, VP(), "v"), "the mixture predicts 'x0' or 'eps', not 'v'"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments[:3], *(arguments[3:] or (VP(),)))


def two(k: int, seed: int, shape: tuple[int, ...] = (2,)) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    root = 0.4 * torch.randn(k, 2, 2, generator=generator, dtype=torch.float64)
    means = torch.randn(k, *shape, generator=generator, dtype=torch.float64)
    return GaussianMixture(torch.rand(k, generator=generator), means, root @ root.mT + 0.2 * torch.eye(2), VP())


def test_tilted_laws_products_and_powers_are_mixtures():
    p, q = two(3, 0), two(2, 1)
    a, b = torch.tensor([[0.5, 0.2], [0.2, -0.3]], dtype=torch.float64), torch.tensor([0.4, -1.0], dtype=torch.float64)
    line = torch.linspace(-8, 8, 601, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    cell = 2 * math.log(float(line[1] - line[0]))
    log_p, log_q = p.log_likelihood(x), q.log_likelihood(x)
    for (law, log_z), exponent in (
        (p.tilted(a, b), log_p + x @ b - ((x @ a) * x).sum(1) / 2),
        (p.times(q), log_p + log_q),
        (p.power(1), log_p),
        (p.power(3), 3 * log_p),
    ):
        torch.testing.assert_close(log_z, exponent.logsumexp(0) + cell, rtol=0, atol=1e-9)
        torch.testing.assert_close(law.log_likelihood(x[::500]), (exponent - log_z)[::500], rtol=1e-9, atol=1e-8)
    assert len(p.times(q)[0].means) == 6 and len(p.power(3)[0].means) == 10 and p.power(2)[0].shape == p.shape
    for call, message in (
        (lambda: p.tilted(-10 * torch.eye(2), b), "this law has no integral: the precision of a component"),
        (lambda: p.power(0), "a power of a mixture is a mixture for whole powers from 1 on, got 0"),
        (lambda: p.power(1.5), "whole powers from 1 on, got 1.5"),
        (lambda: p.times(two(2, 1, (2, 1))), r"two laws of one shape have a product, got \(2,\) and \(2, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_mixture_is_fitted_to_samples():
    means = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    p = GaussianMixture(torch.tensor([0.5, 0.3, 0.2]), means, torch.tensor([0.5, 1.0, 2.0]), VP())
    x = p.sample(2000, seed=1)
    made = GaussianMixture.fitted(x, 3, VP())
    order = torch.cdist(means, made.means).argmin(1)  # far apart, so that each is found
    assert torch.allclose(made.log_weights.exp()[order], p.log_weights.exp(), atol=0.03)
    assert torch.allclose(made.means[order], means, atol=0.2)
    assert torch.allclose(made.covariances()[order], p.covariances(), atol=0.35)
    assert float(made.log_likelihood(x).mean()) > float(p.log_likelihood(x).mean())
    again = GaussianMixture.fitted(x.reshape(-1, 2, 1).float(), 3, VP())
    assert again.shape == (2, 1) and torch.allclose(again.means, made.means, atol=1e-3)
    with pytest.raises(ValueError, match="components must be 1 to the number of samples, 2, got 3"):
        GaussianMixture.fitted(x[:2], 3, VP())
