"""Restorers: their losses on closed forms, training, and sampling.

Methods: rgm.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewstep.networks.mlp import MLP
from fewstep.networks.unet import UNet
from fewstep.processes.restoration_chain import RestorationChain
from fewstep.training.restorer import Restorer, critic_loss, degraded, fidelity, fit_restorer

POINTS = RestorationChain.preserving((0.9, 0.6, 0.05))
PICTURES = RestorationChain.preserving((0.9, 0.5, 0.1), (1, 2, 2))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(width: int = 32, latent: int = 2) -> Restorer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Restorer(MLP((2,), width=width, depth=2, picture=latent), POINTS, (2,), (latent,))


def critic() -> MLP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return MLP((2,), width=32, depth=2)


def heaps(n: int) -> torch.Tensor:
    """Two heaps on the diagonal, of standard deviation 0.1 about (1, 1) and (-1, -1)."""
    sides = 2.0 * torch.randint(0, 2, (n, 1), generator=seeded(3)) - 1
    return sides + 0.1 * torch.randn(n, 2, generator=seeded(4))


class Linear(nn.Module):
    """A critic with a known slope: the logit `w . x + level`."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[0.6, -0.8], [1.0, 0.0]]))

    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return x @ self.w + level[:, None]


def test_the_critics_loss_by_hand():
    real, fake = torch.randn(5, 2, generator=seeded()), torch.randn(5, 2, generator=seeded(1))
    level, slope = torch.linspace(0.2, 1, 5), torch.tensor([0.5 * (0.6 - 0.8), 0.5])  # rows are means over two logits
    module = Linear()
    on_real, on_fake = (x @ slope + level for x in (real, fake))
    expected = ((1 + (-on_real).exp()).log() + (1 + on_fake.exp()).log()).mean() + 1.5 * slope.square().sum()
    torch.testing.assert_close(critic_loss(module, real, fake, level, 3.0).detach(), expected)
    critic_loss(module, real, fake, level, 3.0).backward()
    assert module.w.grad is not None and float(module.w.grad.abs().sum()) > 0


def test_degraded_deals_the_batch_out():
    x0 = torch.randn(3000, 2, 8, 8, generator=seeded())
    states, filled, levels = degraded(PICTURES, x0, seeded(1))
    assert [tuple(y.shape) for y in states] == [(1000, 2, 8, 8), (1000, 2, 4, 4), (1000, 2, 2, 2)]
    assert filled.shape == x0.shape and levels.bincount().tolist() == [0, 1000, 1000, 1000]
    torch.testing.assert_close(
        fidelity(PICTURES, x0, states).view(3, -1).mean(1), torch.full((3,), 0.5), rtol=0.03, atol=0
    )


def test_the_error_has_its_minimum_at_the_posterior_mean():
    """Gaussian data: the restorer that squared error trains is a linear shrinkage, and so are its samples' steps."""
    data = 0.5 * torch.randn(4000, 2, generator=seeded(5))
    trained = fit_restorer(made(), data, None, steps=200, batch=96, lr=5e-3)
    x, z = torch.randn(400, 2, generator=seeded(6)), torch.randn(400, 2, generator=seeded(7))
    for k in (1, 2):
        alpha, sigma = POINTS.alpha(k), POINTS.sigma(k)
        shrink = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
        y = math.sqrt(alpha**2 * 0.25 + sigma**2) * x
        with torch.no_grad():
            error = (trained(y, k, z) - shrink * y).square().mean() / (shrink * y).square().mean()
        assert float(error) < 0.1, (k, float(error))


@pytest.mark.slow
def test_it_learns_both_heaps_where_squared_error_does_not():
    """From the noisiest level, squared error restores the mean between the heaps; a critic makes it choose one."""
    data, count = heaps(2000), 256
    watched: list[dict[str, float]] = []
    ours = fit_restorer(
        made(48), data, critic(), steps=500, batch=192, lr=2e-3, watch=lambda step, parts: watched.append(parts)
    )
    theirs = fit_restorer(made(48), data, None, steps=200, batch=192, lr=2e-3)
    y, z = torch.randn(count, 2, generator=seeded(8)), torch.randn(count, 2, generator=seeded(9))
    with torch.no_grad():
        chosen, mean = ours(y, 3, z), theirs(y, 3, z)
    assert float(mean.abs().mean()) < 0.4 and float(chosen.abs().mean()) > 0.7
    x = ours.sample(count)
    assert 0.2 < float((x.sum(1) > 0).float().mean()) < 0.8
    assert float(((x.abs() - 1).abs() < 0.5).all(1).float().mean()) > 0.7
    assert set(watched[0]) == {"fidelity", "prior", "critic"}
    assert sum(parts["fidelity"] for parts in watched[-20:]) / 20 < 1


def test_samples_belong_to_themselves():
    torch.manual_seed(0)
    network = UNet(2, 8, width=(8, 12), attention=(), classes=None, picture=1)
    torch.nn.init.normal_(network.last.weight)
    restorer = Restorer(network, PICTURES, (2, 8, 8), (1, 8, 8)).eval()
    x = restorer.sample(5, seed=3, batch_size=2)
    assert x.shape == (5, 2, 8, 8)
    torch.testing.assert_close(x[3:], restorer.sample(2, seed=3, first=3), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(x, restorer.sample(5, seed=4))


def test_a_run_repeats_itself():
    first, second = (
        fit_restorer(made(), heaps(50), critic(), steps=4, batch=12, seed=7).state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_bad_input():
    with pytest.raises(ValueError, match="do not divide"):
        Restorer(MLP((2,)), PICTURES, (2,), (2,))
    with pytest.raises(ValueError, match="batch at least 3"):
        fit_restorer(made(), heaps(9), None, steps=1, batch=2)
    with pytest.raises(ValueError, match="at least 1"):
        made().sample(0)
