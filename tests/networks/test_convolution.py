"""The convolution: what a pixel depends on, any size, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from fewstep.networks.convolution import Convolution


def make(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Convolution(**{"channels": 2, "width": 8, "depth": 3} | options)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def test_a_pixel_depends_on_its_receptive_field_and_on_all_of_it():
    network = make()
    x = torch.randn(1, 2, 17, 19, requires_grad=True)
    network(x, torch.tensor(0.3))[0, :, 8, 9].sum().backward()
    touched = x.grad.abs().sum((0, 1)) > 0
    rows, columns = touched.any(1).nonzero().flatten(), touched.any(0).nonzero().flatten()
    reach = network.receptive_field // 2
    assert network.receptive_field == 9
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8 - reach, 8 + reach, 9 - reach, 9 + reach)


def test_it_moves_with_the_picture():
    network = make()
    x = torch.randn(1, 2, 24, 30)
    whole, part = network(x, torch.tensor(0.5)), network(x[:, :, 3:20, 5:28], torch.tensor(0.5))
    reach = network.receptive_field // 2
    inner = part[:, :, reach:-reach, reach:-reach]
    assert torch.allclose(inner, whole[:, :, 3 + reach : 20 - reach, 5 + reach : 28 - reach], atol=1e-5)


def test_it_starts_at_zero_with_every_block_to_leave_out():
    network = Convolution(2, 8, 3, 5)
    assert list(network.blocks) == ["block.0", "block.1", "block.2"] == list(network.skippable)
    assert not network(torch.randn(3, 2, 6, 6), torch.tensor(0.2)).any()


def test_faulty_calls():
    with pytest.raises(ValueError, match="sides of at least 2"):
        Convolution(2, 8)(torch.randn(3, 2, 6, 1), torch.tensor(0.2))
    with pytest.raises(ValueError, match="at least 1, got 2, 0 and 4"):
        Convolution(2, 0)
