"""Reward tuning on a short chain: which gradient it takes, and that the long chain keeps what was gained."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.methods import find
from fewstep.core.noise import Noise
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.ve import EDM
from fewstep.sampling.build import plan
from fewstep.training.adapter_files import load_lora, save_lora
from fewstep.training.fit import fit
from fewstep.training.lora import lora_parameters
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.reward import reward_samples
from fewstep.training.short_chain import short_chain

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def points() -> NetworkDenoiser:
    """Two clusters at (-1, 0) and (1, 0), learned by a small network."""
    torch.manual_seed(0)
    model = NetworkDenoiser(MLP((2,), width=32, depth=2), EDM(), "x0", (2,), precondition="edm", data_std=0.8)
    x = 0.2 * torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    x[:, 0] += torch.where(torch.arange(512) % 2 == 0, 1.0, -1.0)
    levels = NoiseLevels(model.process, "log-normal", mean=-0.5, std=1.5)
    return fit(model, x, steps=400, batch=128, lr=3e-3, levels=levels)


def right(x: torch.Tensor) -> torch.Tensor:
    """Near (1, 0): which cluster a sample goes to is settled early in its chain."""
    return -((x[:, 0] - 1).square() + x[:, 1].square())


def long(model: NetworkDenoiser):
    return plan(model.process, "dpmpp-2m", timesteps="karras", nfe=30)


@pytest.mark.slow
def test_the_gain_persists_on_the_long_chain(points, tmp_path):
    state = {name: value.clone() for name, value in points.state_dict().items()}
    found = find("shortft")(points, right, steps=60, batch=64, lr=1e-2, checked=long(points), every=60)
    first, last = found.checks
    assert last.reward > first.reward + 0.5 * abs(first.reward)
    assert all(torch.equal(state[name], value) for name, value in points.state_dict().items())
    noise = Noise(7).normal(0, (256, 2))
    share = [float((long(points)(model, noise)[:, 0] > 0).float().mean()) for model in (points, found.model)]
    assert share[0] < 0.65 and share[1] > share[0] + 0.2
    back = load_lora(points, save_lora(found.model, tmp_path / "adapter.safetensors"))
    assert torch.equal(long(points)(back, noise), long(points)(found.model, noise))


def test_it_trains_an_adapter_for_each_time_of_the_last_chain(points):
    chains = [plan(points.process, "ddim", timesteps="karras", nfe=n) for n in (1, 3)]
    found = short_chain(points, right, steps=2, chains=chains, batch=8, lr=1e-2, rank=2)
    adapters = {name: lora_parameters(found.model, name) for name in "012"}
    assert sum(map(len, adapters.values())) == len(lora_parameters(found.model))
    x = reward_samples(found.model, Noise(1).normal(0, (8, 2)), chains[1], "full")
    gradients = torch.autograd.grad(right(x).mean(), lora_parameters(found.model))
    for name in adapters:
        own = [
            g
            for g, p in zip(gradients, lora_parameters(found.model), strict=True)
            if any(p is q for q in adapters[name])
        ]
        assert max(float(g.abs().max()) for g in own) > 0  # every evaluation has a say, the first included


def test_bad_input(points):
    with pytest.raises(ValueError, match="one plan or more"):
        short_chain(points, right, steps=1, chains=[])
