"""scale-shift: kept answers of blocks come nearer to what the blocks would have said."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.caching.block_caching import block_caching
from fewstep.caching.block_changes import calibrate
from fewstep.caching.deepcache import deepcache
from fewstep.conditions.label import Label
from fewstep.core.noise import Noise
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.unet import UNet
from fewstep.processes.vp import VP
from fewstep.training.scale_shift import fit_scale_shift
from fewstep.training.trajectories import again, visits


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return Noise(seed).normal(0, (n, 1, 4, 4))


@pytest.fixture(scope="module")
def model() -> NetworkDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(1, 4, (8,), attention=(), classes=3)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return NetworkDenoiser(network, VP(), "v", (1, 4, 4), {"label": Label(3)}).eval()


def test_it_lowers_the_error_and_leaves_the_model_as_it_was(model):
    plan = fs.plan(model.process, "ddim", 10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cached = block_caching(model, **calibrate(model, plan, noise(8, 1)), delta=0.5)
    assert any(row != "whole" for row in cached.schedule)
    state = torch.get_rng_state()
    found = fit_scale_shift(cached, plan, noise(32, 2), steps=25, batch=16, lr=0.03)
    assert torch.equal(torch.get_rng_state(), state) and len(found.losses) == 25
    assert found.losses[-1] < 0.8 * found.losses[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    run, errors = visits(model, plan, noise(16), {}), []  # fresh noises
    with torch.no_grad():
        for one in (found.model, cached):
            errors.append(sum(float((a.value - b).square().sum()) for a, b in again(one, plan, run, torch.arange(16))))
    assert errors[0] < 0.95 * errors[1] and found.model.schedule == cached.schedule
    short = [fit_scale_shift(cached, plan, noise(32, 2), steps=2, batch=16, lr=0.03).losses for _ in range(2)]
    assert short[0] == short[1]


def test_what_was_trained_is_saved(model, tmp_path):
    plan = fs.plan(model.process, "ddim", 6)
    cached = block_caching(model, **calibrate(model, plan, noise(2, 1)), delta=0.6)
    found = fit_scale_shift(cached, plan, noise(4, 2), steps=2, batch=4).model
    loaded = fs.load(fs.save(found, tmp_path / "cached"))
    assert torch.equal(plan(loaded, noise(2), label=[0, 2]), plan(found, noise(2), label=[0, 2]))
    assert not torch.equal(plan(found, noise(2), label=1), plan(cached, noise(2), label=1))


def test_bad_input(model):
    plan = fs.plan(model.process, "ddim", 6)
    measured = calibrate(model, plan, noise(2))
    with pytest.raises(ValueError, match="nothing stands in this cache"):
        fit_scale_shift(block_caching(model, **measured, delta=0.0), plan, noise(2), steps=1)
    with pytest.raises(ValueError, match="batch must be a whole number of at least 1"):
        fit_scale_shift(block_caching(model, **measured), plan, noise(2), steps=1, batch=0)
    with pytest.raises(ValueError, match="scales and shifts are for 'block-caching', this is 'deepcache'"):
        fit_scale_shift(deepcache(fs.load("digits")), plan, noise(2), steps=1)
    with pytest.raises(ValueError, match="was calibrated for ddim, 6 evaluations, and the run is"):
        other = fs.plan(model.process, "ddim", 7)
        fit_scale_shift(block_caching(model, **measured, delta=0.6), other, noise(2), steps=1)
