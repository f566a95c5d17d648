"""The exact denoiser of PFGM++. Method: pfgmpp-dataset."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.denoisers.dataset import DatasetDenoiser
from fewstep.denoisers.pfgmpp import PoissonDataset
from fewstep.processes.pfgmpp import PFGMpp
from fewstep.processes.ve import EDM
from fewstep.sampling.sample import sample

F64 = torch.float64
DATA = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=F64)


def test_it_is_the_field_of_charges():
    """The gradient of the Coulomb potential `sum |(x, r) - (x_i, 0)|^-(N + D - 2)` leads along `x - x0` and `r`."""
    d, sigma, n = 3.0, 0.8, 5
    x = Noise(1).normal(0, (4, n), "cpu", F64).requires_grad_(True)
    r = torch.full((4, 1), sigma * math.sqrt(d), dtype=F64, requires_grad=True)
    square = torch.cdist(x, DATA).square() + r**2
    field = torch.autograd.grad(-square.pow(-(n + d - 2) / 2).sum(), (x, r))
    x0 = PoissonDataset(DATA, PFGMpp(degrees=d))(x.detach(), torch.tensor(sigma, dtype=F64)).x0
    wanted = field[0] / field[1] * math.sqrt(d)  # dx / dr = E_x / E_r, and dr = sqrt(D) d(sigma)
    torch.testing.assert_close((x.detach() - x0) / sigma, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0, 80.0])
def test_many_dimensions_are_edm(sigma):
    x, t = DATA[3] + sigma * Noise(1).normal(0, (50, 5), "cpu", F64), torch.tensor(sigma, dtype=F64)
    exact = DatasetDenoiser(DATA, EDM())(x, t).x0
    torch.testing.assert_close(PoissonDataset(DATA, PFGMpp(degrees=1e6))(x, t).x0, exact, rtol=0, atol=2e-4)
    torch.testing.assert_close(PoissonDataset(DATA, PFGMpp(degrees=None))(x, t).x0, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("degrees", [1.0, 2.0, 64.0, None])
def test_the_ode_ends_in_the_data_at_every_d(degrees):
    """Each point as often as any other, within five standard errors."""
    n = 1500
    model = PoissonDataset(DATA, PFGMpp(degrees=degrees))
    x = sample(model, n, steps=24, solver="heun", timesteps="karras", dtype=F64, seed=3, batch_size=n)
    nearest = torch.cdist(x, DATA).min(1)
    # The farthest starts of D = 1, at thousands of sigma, have not all arrived.
    assert float((nearest.values < 1e-3).double().mean()) > (0.99 if degrees == 1 else 0.999)
    share = torch.bincount(nearest.indices, minlength=12) / n
    assert float((share - 1 / 12).abs().max()) < 5 * math.sqrt(1 / 12 * 11 / 12 / n) + (0.01 if degrees == 1 else 0)


def test_one_point_is_met_from_anywhere():
    model = PoissonDataset(DATA[:1], PFGMpp(degrees=2.0))
    x = sample(model, 5, steps=3, solver="ddim", timesteps="karras", dtype=F64)
    torch.testing.assert_close(x, DATA[:1].expand(5, 5), rtol=0, atol=1e-9)


def test_it_is_the_least_squares_answer_to_the_training_noise():
    """Its error is orthogonal to functions of x under the process's own noise; that of EDM's denoiser is not."""
    process, n = PFGMpp(degrees=2.0), 100_000
    generator = torch.Generator().manual_seed(7)
    eps = process.eps(lambda: torch.randn(n, 5, generator=generator, dtype=F64))
    x0, t = DATA[torch.arange(n) % 12], torch.tensor(1.2, dtype=F64)
    x = x0 + 1.2 * eps
    far = []
    for model in (PoissonDataset(DATA, process), DatasetDenoiser(DATA, EDM())):
        products = torch.cat([(model(x, t).x0 - x0) * test for test in (torch.ones_like(x), torch.tanh(x))], dim=1)
        far.append(float((products.mean(0).abs() / (products.std(0) / math.sqrt(n))).max()))
    assert far[0] < 5 < 10 < far[1]
