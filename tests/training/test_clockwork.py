"""clockwork-adaptor: what it learns from, and that it learns."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.caching.forecast import told
from fewstep.conditions.label import Label
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.unet import UNet
from fewstep.processes.vp import VP
from fewstep.training.clockwork import fit_adaptor, recorded


@pytest.fixture(scope="module")
def model() -> NetworkDenoiser:
    """Of random weights, none zero."""
    generator = torch.Generator().manual_seed(0)
    network = UNet(2, 4, (8, 8), attention=(), classes=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return NetworkDenoiser(network, VP(), "v", (2, 4, 4), {"label": Label(3)}).eval()


def noises(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_it_learns_and_leaves_the_model_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan, state = fs.plan(model.process, "dpmpp-2m", 9), torch.get_rng_state()
    fitted = fit_adaptor(model, plan, noises(24), steps=60, batch=32, width=8, lr=1e-2, label=1)
    assert torch.equal(torch.get_rng_state(), state) and len(fitted.losses) == 60
    assert sum(fitted.losses[:5]) / 5 == pytest.approx(1, abs=0.5)  # the identity's, of a few rows
    assert sum(fitted.losses[-5:]) < 0.8 * sum(fitted.losses[:5])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in fitted.adaptor.parameters())
    again = fit_adaptor(model, plan, noises(24), steps=60, batch=32, width=8, lr=1e-2, label=1)
    assert again.losses == fitted.losses
    fresh = noises(16, 1)
    cached = [fs.cache(model, "clockwork", **options) for options in (fitted.options, {})]
    whole, ours, kept = (plan(one, fresh, label=1) for one in (model, *cached))
    assert (ours - whole).norm() < (kept - whole).norm()


def test_its_rows_are_those_of_whole_runs(model):
    """At evaluations 1, 2 and 4 of 5, with period 3: the inside's last answer, and its own at the next evaluation."""
    plan, seen = fs.plan(model.process, "ddim", 5), []
    kept, shallow, noise, inside = recorded(model, plan, noises(3), 3, 1, {"label": 1})
    network, found = model.network, []
    hooks = [
        network.down[0]["down"].register_forward_pre_hook(lambda _, args: seen.append(args[0].clone())),
        network.up[1]["up"].register_forward_hook(lambda _, args, out: found.append(out.clone())),
    ]
    plan(model, noises(3), label=1)
    for hook in hooks:
        hook.remove()
    assert torch.equal(kept, torch.cat([found[0], found[0], found[3]]))
    assert torch.equal(inside, torch.cat([found[1], found[2], found[4]]))
    assert torch.equal(shallow, torch.cat([seen[1], seen[2], seen[4]]))
    assert torch.equal(noise, torch.tensor([told(model.process, plan.moments[k]) for k in (1, 2, 4) for _ in range(3)]))


def test_bad_input(model):
    plan = fs.plan(model.process, "ddim", 4)
    with pytest.raises(ValueError, match="period must be a whole number of at least 2, got 1"):
        fit_adaptor(model, plan, noises(2), steps=1, period=1)
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got 0"):
        fit_adaptor(model, plan, noises(2), steps=0)
    with pytest.raises(ValueError, match="a level 4 below its first"):
        fit_adaptor(model, plan, noises(2), steps=1, level=4)
    with pytest.raises(ValueError, match="a plan of at least two evaluations"):
        fit_adaptor(model, fs.plan(model.process, "ddim", 1), noises(2), steps=1)
    with pytest.raises(ValueError, match="cached already, by 'clockwork'"):
        fit_adaptor(fs.cache(model, "clockwork"), plan, noises(2), steps=1)
