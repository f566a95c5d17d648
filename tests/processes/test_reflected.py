"""Reflected Brownian motion: its kernel by two sums, its laws, and its paths.

Methods: reflected.
"""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.process import process_from_config
from fewstep.processes.reflected import Reflected, fold, kernel, wrapped

F64 = torch.float64
STDS = (0.02, 0.1, 0.3, 0.499, 0.5, 0.501, 0.8, 1.5)


def images(y, x, std):
    """The kernel by mirror images, many of them."""
    m = 2 * torch.arange(-40, 41, dtype=F64)
    away = torch.stack([y.unsqueeze(-1) - x.unsqueeze(-1) + m, y.unsqueeze(-1) + x.unsqueeze(-1) + m])
    return ((-0.5 * (away / std) ** 2).exp() / (std * math.sqrt(2 * math.pi))).sum((0, -1))


def cosines(y, x, std):
    """The kernel in the eigenfunctions of the Neumann problem, many of them."""
    n = math.pi * torch.arange(1, 400, dtype=F64)
    terms = (-0.5 * (n * std) ** 2).exp() * (n * x.unsqueeze(-1)).cos() * (n * y.unsqueeze(-1)).cos()
    return 1 + 2 * terms.sum(-1)


@pytest.mark.parametrize("std", STDS)
def test_the_kernel_is_both_its_sums(std):
    y, x = torch.linspace(0, 1, 41, dtype=F64)[:, None], torch.tensor([0.0, 0.13, 0.5, 1.0], dtype=F64)
    y, x = torch.broadcast_tensors(y, x)
    density = kernel(y, x, torch.tensor(std, dtype=F64))[0].exp()
    torch.testing.assert_close(density, images(y, x, std), rtol=1e-12, atol=1e-300)
    torch.testing.assert_close(density, cosines(y, x, std), rtol=0, atol=1e-12 / std)
    torch.testing.assert_close(density, kernel(x, y, torch.tensor(std, dtype=F64))[0].exp())


@pytest.mark.parametrize("std", STDS)
def test_the_slope_is_the_derivative_and_vanishes_at_the_walls(std):
    y = torch.linspace(0, 1, 37, dtype=F64).requires_grad_(True)
    wide = torch.tensor(std, dtype=F64)
    log_density, slope = kernel(y, torch.tensor(0.3, dtype=F64), wide)
    torch.testing.assert_close(slope, std * torch.autograd.grad(log_density.sum(), y)[0], rtol=1e-9, atol=1e-9)
    assert float(slope.detach()[[0, -1]].abs().max()) < 1e-9
    # each of the sums alone, where the other is used
    u = torch.linspace(-1, 1, 37, dtype=F64).requires_grad_(True)
    log_density, slope = wrapped(u, wide)
    torch.testing.assert_close(slope, std * torch.autograd.grad(log_density.sum(), u)[0], rtol=1e-9, atol=1e-9)


def test_far_from_the_walls_it_is_the_free_motion():
    y = torch.linspace(0.4, 0.6, 9, dtype=F64)
    _, slope = kernel(y, torch.tensor(0.5, dtype=F64), torch.tensor(0.03, dtype=F64))
    torch.testing.assert_close(slope, -(y - 0.5) / 0.03, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("std", [0.05, 0.5, 2.0])
def test_mass_one_and_uniform_in_the_end(std):
    n = 4000
    y = (torch.arange(n, dtype=F64) + 0.5) / n
    density = kernel(y[:, None], torch.tensor([0.0, 0.21, 1.0], dtype=F64), torch.tensor(std, dtype=F64))[0].exp()
    torch.testing.assert_close(density.mean(0), torch.ones(3, dtype=F64), rtol=1e-9, atol=0)
    if std == 2.0:
        assert float((density - 1).abs().max()) < 6e-9


def test_the_semigroup():
    """Two motions after each other are one of the summed variances (Chapman and Kolmogorov)."""
    n = 2000
    middle = (torch.arange(n, dtype=F64) + 0.5) / n
    y, x = torch.tensor(0.17, dtype=F64), torch.tensor(0.81, dtype=F64)
    a, b = torch.tensor(0.3, dtype=F64), torch.tensor(0.4, dtype=F64)
    product = kernel(middle, x, a)[0].exp() * kernel(y, middle, b)[0].exp()
    both = kernel(y, x, torch.tensor(0.5, dtype=F64))[0].exp()
    assert float(product.mean()) == pytest.approx(float(both), rel=1e-9)


def test_a_walk_between_mirrors_has_the_kernel():
    """Small steps, each reflected at the wall it crosses, against the kernel over ten bins."""
    generator = torch.Generator().manual_seed(0)
    n, steps, std = 40_000, 100, 0.4
    x = torch.full((n,), 0.15, dtype=F64)
    for _ in range(steps):
        x = x + std / math.sqrt(steps) * torch.randn(n, generator=generator, dtype=F64)
        x = torch.where(x < 0, -x, torch.where(x > 1, 2 - x, x))
    shares = torch.histc(x, 10, 0, 1) / n
    y = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    expected = (
        kernel(y, torch.tensor(0.15, dtype=F64), torch.tensor(std, dtype=F64))[0].exp().view(10, 100).mean(1) / 10
    )
    assert float((shares - expected).abs().max()) < 5 * math.sqrt(0.2 / n)


def test_fold():
    x = torch.tensor([0.25, 1.25, -0.75, 2.25, -0.25, 7.5, -1e-20, 1.0, 2.0], dtype=F64)
    inside, slope = fold(x)
    torch.testing.assert_close(inside, torch.tensor([0.25, 0.75, 0.75, 0.25, 0.25, 0.5, 0.0, 1.0, 0.0], dtype=F64))
    assert slope[:6].tolist() == [1, -1, -1, 1, -1, -1]
    wild = 50 * torch.randn(1000, generator=torch.Generator().manual_seed(1))
    inside, _ = fold(wild)
    assert 0 <= float(inside.min()) and float(inside.max()) <= 1


def test_config_and_limits():
    process = Reflected(sigma_min=0.02, sigma_max=1.5)
    assert process_from_config(process.config()) == process
    assert process.sigma(1.0) == pytest.approx(1.5) and process.alpha(0.3) == 1
    with pytest.raises(ValueError, match="at least 1"):
        Reflected(sigma_max=0.5)
