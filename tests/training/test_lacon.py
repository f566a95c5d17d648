"""late-constraint: a head learns a map from a frozen network's features."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.unet import UNet
from fewstep.processes.vp import VP
from fewstep.training.lacon import fit_adapter
from fewstep.training.noise_levels import NoiseLevels


def model() -> NetworkDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NetworkDenoiser(UNet(1, 4, (8,), attention=(), classes=None), VP(), "v", (1, 4, 4)).eval()


def pairs(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of one grey, and whether it is bright."""
    grey = torch.rand(count, 1, 1, 1, generator=generator) * 2 - 1
    return grey.expand(-1, 1, 4, 4).clone(), (grey > 0).float().expand(-1, 1, 4, 4).clone()


def test_it_learns_and_leaves_the_model_as_it_was():
    base = model()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    levels, held = NoiseLevels(VP(), "log-normal", mean=-3.0, std=0.5), pairs(64, torch.Generator().manual_seed(9))
    state = torch.get_rng_state()
    made = fit_adapter(base, pairs, ["mid.res1"], steps=40, width=8, batch=16, lr=1e-2, levels=levels, held=held)
    assert torch.equal(torch.get_rng_state(), state) and len(made.losses) == 40
    assert made.validation < 0.5 * made.losses[0] and not any(p.requires_grad for p in made.head.parameters())
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    again = fit_adapter(base, pairs, ["mid.res1"], steps=3, width=8, batch=16, levels=levels)
    assert again.losses == fit_adapter(base, pairs, ["mid.res1"], steps=3, width=8, batch=16, levels=levels).losses
    assert math.isnan(again.validation)
    guided = fs.guide(base, "lacon", **made.options, target=torch.ones(1, 4, 4))
    assert fs.sample(guided, 2, steps=2, solver="ddim").shape == (2, 1, 4, 4)


def test_bad_input():
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        fit_adapter(model(), pairs, [], steps=0)
    with pytest.raises(ValueError, match="unknown block"):
        fit_adapter(model(), pairs, ["mid.re"], steps=1)
    with pytest.raises(ValueError, match=r"maps must be \(B, C, h, w\)"):
        fit_adapter(model(), lambda n, g: (torch.zeros(n, 1, 4, 4), torch.zeros(n, 4)), [], steps=1)
