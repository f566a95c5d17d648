"""Adapters belong to a measurement and a run: none are left, none are shared, and of rank 0 there are none."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, half, latent, mixture, normal

import fewstep as fs
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.networks.unet import UNet
from fewstep.processes.vp import VP
from fewstep.restoration.adapt import Adapted

F64 = torch.float64


def network() -> NetworkDenoiser:
    torch.manual_seed(0)
    made = MLP((D,), width=16, depth=2).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return NetworkDenoiser(made, VP(), "x0", (D,)).eval()


def restored(model, y, method="ddnm", **how):
    extra = {"measurement": y} if isinstance(model, Adapted) else {}
    return fs.restore(model, y, half(), 0.0, method=method, nfe=4, dtype=F64, **extra, **how)


@pytest.mark.parametrize("method", ["ddnm", "dps", "ddrm"])
def test_rank_0_is_the_base_bit_for_bit(method):
    model, y = network(), half().measure(normal(3, D, seed=3))
    assert torch.equal(restored(Adapted(model, half(), rank=0), y, method), restored(model, y, method))
    assert not torch.equal(restored(Adapted(model, half(), rank=2), y, method), restored(model, y, method))


def test_each_measurement_has_adapters_of_its_own_and_the_next_run_none():
    model, y = network(), half().measure(normal(3, D, seed=3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = Adapted(model, half(), rank=2, steps=2, rate=0.05)
    together = restored(own, y)
    assert torch.equal(together, restored(own, y))
    alone = torch.cat([fs.restore(own, y[i:i+1], half(), method="ddnm", nfe=4, dtype=F64, measurement=y[i:i+1])
                       for i in range(1)])  # fmt: skip
    assert torch.allclose(alone[0], together[0], atol=1e-10)
    other = y.clone()
    other[1:] += 1.0
    assert torch.allclose(restored(own, other)[0], together[0], atol=1e-10)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_tuning_brings_the_answers_nearer_to_the_measurement():
    model, a = network(), half()
    y = a.measure(normal(3, D, seed=3))
    run = {"solver": "ddim", "steps": 8, "dtype": F64}
    base = fs.sample(model, 3, **run)
    tuned = fs.sample(Adapted(model, a, steps=5, rate=0.02), 3, measurement=y, **run)
    assert float((a(tuned) - y).square().sum()) < 0.5 * float((a(base) - y).square().sum())


def test_a_unet_takes_them_too():
    torch.manual_seed(0)
    model = NetworkDenoiser(UNet(1, 4, (8,), attention=(4,)), VP(), "v", (1, 4, 4)).eval()
    a = fs.operators.Identity().fit((1, 4, 4))
    y = torch.randn(2, 1, 4, 4)
    x = fs.restore(Adapted(model, a, rank=1), y, a, 0.1, method="dps", nfe=2, measurement=y)
    assert x.shape == (2, 1, 4, 4) and bool(torch.isfinite(x).all())


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="samples are latents, and adapters are tuned on data"):
        Adapted(latent(), half())
    with pytest.raises(ValueError, match="adapters stand on linear layers and convolutions"):
        Adapted(mixture(), half())
    with pytest.raises(ValueError, match="rank must be at least 0, steps 1"):
        Adapted(network(), half(), steps=0)
