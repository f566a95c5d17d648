"""The kernel's draws have the kernel's posterior, and the chain is DDRM where the kernel is known."""

from __future__ import annotations

import itertools

import pytest
import torch
from restoration.problems import D, half, mixture, normal

import fewstep as fs
from fewstep.core.noise import Noise
from fewstep.operators.noise import Gaussian
from fewstep.restoration.gibbs_ddrm import GibbsDDRM
from fewstep.restoration.kernels import Kernels
from fewstep.restoration.measured import Measured
from fewstep.restoration.restore import walking

F64 = torch.float64
TRUE = torch.tensor([0.15, 0.6, 0.25], dtype=F64)


def blur(kernel=(0.25, 0.5, 0.25)):
    return fs.operators.Blur(torch.tensor(kernel, dtype=F64)).fit((D,))


def test_the_posterior_on_a_grid_covers_the_draws():
    n, noise, spread = 2000, 0.15, 0.2
    family, x0 = Kernels(blur()), normal(1, D, seed=3)
    y = family.apply(TRUE[None], x0) + noise * normal(1, D, seed=4)
    axes = [torch.linspace(float(tap) - 0.9, float(tap) + 0.9, 61, dtype=F64) for tap in family.guess]
    grid = torch.tensor(list(itertools.product(*(axis.tolist() for axis in axes))), dtype=F64)
    left = (y - family.apply(grid, x0.expand(len(grid), -1))).square().sum(1) / noise**2
    logs = -(left + (grid - family.guess).square().sum(1) / spread**2) / 2
    weights = logs.softmax(0)
    mean = (weights[:, None] * grid).sum(0)
    covariance = (weights[:, None, None] * (grid - mean)[:, :, None] * (grid - mean)[:, None]).sum(0)
    own = GibbsDDRM(spread=spread, moves=25)
    phi = family.guess.expand(n, -1)
    drawn = own.drawn(family, phi, x0.expand(n, -1), y.expand(n, -1), noise**2, Noise(5), 1)
    assert float(((drawn.mean(0) - mean).abs() / (covariance.diagonal() / n).sqrt()).max()) < 4
    assert torch.allclose(torch.cov(drawn.T), covariance, atol=4 * float(covariance.diagonal().max()) / n**0.5)
    # The share of draws within the grid's region of half the mass.
    ordered = logs.sort(descending=True)
    level = ordered.values[int((weights[ordered.indices].cumsum(0) < 0.5).sum())]
    at = family.apply(drawn, x0.expand(n, -1))
    height = -((y - at).square().sum(1) / noise**2 + (drawn - family.guess).square().sum(1) / spread**2) / 2
    assert float((height > level).double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / n**0.5)


def test_with_a_known_kernel_it_is_ddrm():
    model, a = mixture(), blur()
    y = a.measure(model.sample(3, seed=3), noise=0.1)
    theirs = fs.restore(model, y, a, 0.1, method="ddrm", nfe=6, dtype=F64)
    mine = fs.restore(model, y, a, 0.1, method="gibbs-ddrm", options={"spread": 1e-9}, nfe=6, dtype=F64)
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_the_kernel_is_found():
    model, first, n = mixture(), blur((0.05, 0.9, 0.05)), 12
    true = fs.operators.Blur(TRUE).fit((D,))
    y = true.measure(model.sample(n, seed=3), noise=0.02)
    own = GibbsDDRM(spread=0.2)
    loop = walking(model, first, Gaussian(0.02), own, "gibbs-ddrm", 40, "karras")
    x = loop(Measured(model, first), normal(n, D, seed=8), y=y, dtype=F64)
    assert x.shape == (n, D) and own.kernels[0].shape == (n, 3)
    before = (first.kernel - TRUE).square().sum()
    assert float((own.kernels[0] - TRUE).square().sum(1).median()) < 0.5 * float(before)


def test_bad_input_is_said():
    model, a = mixture(), half()
    with pytest.raises(ValueError, match="unknown kernels start from a cyclic Blur"):
        fs.restore(model, normal(1, D), a, 0.1, method="gibbs-ddrm")
    with pytest.raises(ValueError, match="divides by the noise: without noise calibrated"):
        fs.restore(model, normal(1, D), blur(), method="gibbs-ddrm")
    with pytest.raises(ValueError, match="spread must be above 0"):
        GibbsDDRM(spread=0.0)
