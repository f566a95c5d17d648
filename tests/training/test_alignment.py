"""Alignment of a block with a teacher. Method: repa."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from fewstep.core.methods import find
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.metrics.digits_classifier import digits_classifier
from fewstep.networks.dit import DiT
from fewstep.networks.unet import UNet
from fewstep.processes.vp import VP
from fewstep.training.alignment import Alignment
from fewstep.training.fit import fit
from fewstep.training.objective import Objective, Step

T = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)


def test_it_is_registered():
    assert find("repa") is Alignment


def denoiser(network="dit"):
    torch.manual_seed(0)
    made = DiT(width=16, depth=2, classes=None) if network == "dit" else UNet(width=(8, 12), classes=None)
    return NetworkDenoiser(made, VP(), "v", (1, 8, 8))


def step(model):
    x0, eps = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Step(model, x0, eps, T, {}, *model.loss_pair(x0, eps, T))


def patches(x0):
    """Four numbers for each of the DiT's 16 patches."""
    return F.pixel_unshuffle(x0, 2)


def pooled(x0):
    return digits_classifier().features(x0)


@pytest.mark.parametrize(
    ("network", "name", "teacher", "pool"),
    [("dit", "block.0.mlp", patches, False), ("dit", "block.1.attn", pooled, True), ("unet", "mid.res0", pooled, True),
     ("unet", "down.0.down", lambda x0: patches(x0).flatten(2).mT, False)],
)  # fmt: skip
def test_the_term_by_hand(network, name, teacher, pool):
    model = denoiser(network)
    term, kept = Alignment(model.network, name, teacher, torch.zeros(2, 1, 8, 8), width=7), []
    model.network.get_submodule(name).register_forward_hook(lambda module, inputs, output: kept.append(output))
    found = term(step(model))
    hidden, wanted = kept[0], teacher(step(model).x0)
    tokens = hidden if hidden.ndim == 3 else hidden.flatten(2).mT
    targets = wanted[:, None] if wanted.ndim == 2 else wanted.flatten(2).mT if wanted.ndim == 4 else wanted
    projected = term.projector(tokens.mean(1, keepdim=True) if pool else tokens)
    unit = [value / value.norm(dim=2, keepdim=True) for value in (projected, targets)]
    assert found.shape == (3,)
    torch.testing.assert_close(found, -(unit[0] * unit[1]).sum(2).mean(1))


def test_gradients_reach_the_layers_below_and_the_projector_alone():
    model = denoiser()
    term = Alignment(model.network, "block.0.mlp", pooled, torch.zeros(1, 1, 8, 8))
    term(step(model)).sum().backward()
    with_gradient = {name for name, p in model.network.named_parameters() if p.grad is not None}
    assert "first.weight" in with_gradient and not any(name.startswith("block.1") for name in with_gradient)
    assert all(p.grad is not None for p in term.parameters())
    assert all(p.grad is None for p in digits_classifier().parameters())
    assert [name for name, _ in term.named_children()] == ["projector"]  # neither the network nor the teacher


def trained(factor):
    model = denoiser()
    terms = (
        [] if factor is None else [(factor, Alignment(model.network, "block.0.mlp", pooled, torch.zeros(1, 1, 8, 8)))]
    )
    data = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    return fit(model, data, steps=12, batch=8, lr=3e-3, objective=Objective(model, terms=terms)).network.state_dict()


def test_a_factor_of_zero_changes_no_bit_and_another_one_does():
    plain, none, some = trained(None), trained(0.0), trained(0.5)
    assert all(torch.equal(plain[name], none[name]) for name in plain)
    assert any(not torch.equal(plain[name], some[name]) for name in plain)


def test_the_projector_learns_the_teacher():
    model = denoiser()
    term = Alignment(model.network, "block.1.mlp", pooled, torch.zeros(1, 1, 8, 8))
    objective, before = Objective(model, terms=[(0.5, term)]), float(term(step(model)).mean())
    data = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    fit(model, data, steps=30, batch=16, lr=1e-2, objective=objective)
    assert float(term(step(model)).mean()) < before - 0.3


def test_a_copy_is_not_listened_to_and_close_ends_it():
    model = denoiser()
    term = Alignment(model.network, "block.0.mlp", pooled, torch.zeros(1, 1, 8, 8))
    twin = copy.deepcopy(model)
    with pytest.raises(ValueError, match="nothing has passed the block 'block.0.mlp'"):
        term(step(twin))
    term.close()
    with pytest.raises(ValueError, match="nothing has passed"):
        term(step(model))


def test_bad_input():
    network, example = denoiser().network, torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="unknown block 'block.0': did you mean 'block.0.mlp'"):
        Alignment(network, "block.0", pooled, example)
    with pytest.raises(ValueError, match="has 16 tokens for 2 samples, the teacher 4 for 2"):
        Alignment(network, "block.0.mlp", lambda x0: F.pixel_unshuffle(x0, 4), example)
    with pytest.raises(ValueError, match="the teacher's features must be"):
        Alignment(network, "block.0.mlp", lambda x0: x0[:, 0, 0, 0], example)
