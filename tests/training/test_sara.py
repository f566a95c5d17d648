"""Sparse low-rank adaptation: which weights move, how their change is penalised, and what the optimiser holds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fewstep.core.methods import find
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.ve import EDM
from fewstep.training.lora import layers
from fewstep.training.sara import NuclearNorm, Sparse, add_sparse, fold, smallest

SHAPE = (1, 4, 8)


def denoiser() -> NetworkDenoiser:
    torch.manual_seed(0)
    network = find("unet")(channels=1, size=(4, 8), width=(8, 12), attention=(2,), classes=None)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return NetworkDenoiser(network, EDM(), "x0", SHAPE, precondition="edm").eval()


def data() -> torch.Tensor:
    return torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(2))


def test_the_smallest_share_of_all_weights_is_chosen():
    model = denoiser()
    threshold, rows = smallest(model, 0.1)
    sizes = {path: model.network.get_submodule(path).weight.abs().flatten() for path in layers(model)}
    every = torch.cat(list(sizes.values()))
    assert sum(map(len, rows.values())) == round(0.1 * len(every)) == int((every <= threshold).sum())
    for path, chosen in rows.items():
        left = torch.ones(len(sizes[path]), dtype=torch.bool)
        left[chosen] = False
        assert sizes[path][chosen].max() <= threshold < sizes[path][left].min()
    only = smallest(model, 0.25, ["mid"])[1]
    assert only and all(path.startswith("mid") for path in only)
    for bad in (0.0, 1.5):
        with pytest.raises(ValueError, match="share"):
            smallest(model, bad)


def test_the_values_get_the_gradients_of_their_entries_and_nothing_else_trains():
    model, plain = denoiser(), denoiser()
    rows = smallest(model, 0.1)[1]
    changes = add_sparse(model, rows)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(change.values) for change in changes.values()}
    x = data()[:3]
    for made in (model, plain):
        made(x, torch.tensor(0.7)).x0.square().sum().backward()
    for path, change in changes.items():
        wanted = plain.network.get_submodule(path).weight.grad.flatten()[rows[path]]
        torch.testing.assert_close(change.values.grad, wanted, rtol=1e-4, atol=1e-4)


def test_folded_weights_hold_the_sum():
    model, before = denoiser(), denoiser()
    rows = smallest(model, 0.1)[1]
    changes = add_sparse(model, rows)
    for change in changes.values():
        nn.init.normal_(change.values)
    x = data()[:3]
    answer = model(x, torch.tensor(0.7)).x0.detach()
    fold(model)
    assert model.network.state_dict().keys() == before.network.state_dict().keys()
    torch.testing.assert_close(model(x, torch.tensor(0.7)).x0, answer)
    path = next(iter(rows))
    moved = (model.network.get_submodule(path).weight - before.network.get_submodule(path).weight).flatten()
    torch.testing.assert_close(moved[rows[path]], changes[path].values, rtol=1e-4, atol=1e-5)
    assert int((moved != 0).sum()) == len(rows[path])


def test_the_penalty_is_the_nuclear_norm_and_its_gradient_the_least():
    torch.manual_seed(3)
    change = Sparse(torch.arange(0, 35, 2), torch.empty(5, 7, dtype=torch.float64))
    assert NuclearNorm([change])() == 0
    (gradient,) = torch.autograd.grad(NuclearNorm([change])(), change.values)
    assert gradient.abs().max() == 0  # of no change, the least subgradient is none
    nn.init.normal_(change.values)
    other = Sparse(torch.tensor([1, 5]), torch.empty(3, 2, 2))
    nn.init.normal_(other.values)
    value = NuclearNorm([change, other])()
    wanted = sum(torch.linalg.svdvals(c.delta()).sum() for c in (change, other))
    torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(value, change.values)
    for k in range(len(change.values)):
        ends = []
        for sign in (1, -1):
            moved = copy.deepcopy(change)
            with torch.no_grad():
                moved.values[k] += sign * 1e-5
            ends.append(float(torch.linalg.svdvals(moved.delta().detach()).sum()))
        assert float(gradient[k]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-5)


def test_of_equal_error_the_penalty_prefers_low_rank():
    """Ones at all entries but one of a square: completing the square costs less than leaving it out."""
    rows = torch.arange(9)
    change = Sparse(rows, torch.empty(3, 3))
    optimiser = torch.optim.Adam([change.values], lr=0.02)
    known = torch.tensor([k != 4 for k in range(9)])
    for _ in range(600):
        loss = 10 * (change.values[known] - 1).square().sum() + NuclearNorm([change])()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert change.values[4] > 0.8


def test_phases_choose_again_among_those_still_small():
    model = denoiser()
    made = find("sara")(model, data(), steps=8, share=0.15, penalty=0.01, batch=4, lr=0.03, seed=1)
    threshold, rows = smallest(model, 0.15)
    assert made.threshold == threshold
    first, second = made.chosen
    assert first == sum(map(len, rows.values())) and 0 < second < first
    assert made.optimiser_bytes == 2 * 4 * first
    assert made.full_bytes == 2 * 4 * sum(p.numel() for p in model.parameters())
    moved = 0
    after_by_name = made.model.network.state_dict()
    for name, before in model.network.named_parameters():
        after = after_by_name[name]
        changed = (after != before).flatten()
        path = name.removesuffix(".weight")
        if path in rows:
            allowed = torch.zeros(before.numel(), dtype=torch.bool)
            allowed[rows[path]] = True
            assert not (changed & ~allowed).any()
        else:
            assert not changed.any(), name
        moved += int(changed.sum())
    assert 0.9 * first < moved <= first
    again = find("sara")(model, data(), steps=8, share=0.15, penalty=0.01, batch=4, lr=0.03, seed=1)
    same = zip(made.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_entries_that_grew_are_left_alone_later():
    """Every entry is pushed over a low threshold in phase one: phases two and three have nothing to train."""
    model = denoiser()
    grown = find("sara")(model, data(), steps=3, share=0.002, penalty=0.0, phases=3, batch=4, lr=0.3, clip=1e9)
    assert len(grown.chosen) == 1


def test_bad_input():
    with pytest.raises(ValueError, match="phases"):
        find("sara")(denoiser(), data(), steps=2, phases=3)
    with pytest.raises(ValueError, match="penalty"):
        find("sara")(denoiser(), data(), steps=2, penalty=-1.0)
