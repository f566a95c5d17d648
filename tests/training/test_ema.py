from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.core.methods import find
from fewstep.training.ema import EMA


def test_ema_is_registered():
    assert find("ema") is EMA


def test_average_is_the_stated_sum_with_warm_up():
    network = nn.Linear(2, 3).double()
    ema = EMA(network, 0.5)
    expected = network.weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    for update in range(1, 30):
        with torch.no_grad():
            network.weight.copy_(torch.randn(3, 2, generator=generator))
        ema.update(network)
        factor = min(0.5, (1 + update) / (10 + update))
        expected = factor * expected + (1 - factor) * network.weight.detach()
        assert torch.allclose(ema.average["weight"].double(), expected, atol=1e-6)
    assert factor == 0.5  # the warm-up is over after eight updates


def test_average_stays_in_float32():
    network = nn.Linear(2, 3).bfloat16()
    with torch.no_grad():
        network.weight.fill_(1.0)
    ema = EMA(network, 0.999)
    ema.updates = 10**6
    with torch.no_grad():
        network.weight.fill_(2.0)
    ema.update(network)
    assert ema.average["weight"].dtype == torch.float32
    assert ema.average["weight"].flatten().tolist() == pytest.approx([1.001] * 6, rel=1e-6)  # bfloat16 would not move
    other = nn.Linear(2, 3).double()
    ema.copy_to(other)
    assert torch.equal(other.weight, ema.average["weight"].double())


def test_average_does_not_share_the_weights():
    network = nn.Linear(2, 3)
    ema = EMA(network, 0.9)
    before = ema.average["bias"].clone()
    with torch.no_grad():
        network.bias.add_(1)
    assert torch.equal(ema.average["bias"], before)


def test_weights_that_have_no_average_stay():
    part = nn.ModuleDict({"first": nn.Linear(2, 2)})
    ema = EMA(part, 0.0)
    whole = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    kept = whole["second"].weight.clone()
    ema.copy_to(whole)
    assert torch.equal(whole["first"].weight, part["first"].weight) and torch.equal(whole["second"].weight, kept)


def test_load_goes_on():
    network = nn.Linear(2, 3)
    one, other = EMA(network, 0.9), EMA(nn.Linear(2, 3), 0.9)
    for _ in range(3):
        one.update(network)
    other.load(one.average, one.updates)
    with torch.no_grad():
        network.weight.mul_(2)
    one.update(network)
    other.update(network)
    assert torch.equal(one.average["weight"], other.average["weight"])


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_other_decays_raise(decay):
    with pytest.raises(ValueError, match="decay of the average must be at least 0 and below 1"):
        EMA(nn.Linear(1, 1), decay)
