"""Layers with adapters beside them: PEFT's answers, and a base that nobody writes to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.networks.low_rank import LowRank, adapted

GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def test_it_is_the_layer_with_the_product_added_to_its_weights():
    linear, x = nn.Linear(5, 7), drawn(3, 5)
    down, up = drawn(2, 5), drawn(7, 2)
    merged = nn.Linear(5, 7)
    merged.load_state_dict({"weight": linear.weight + 0.5 * up @ down, "bias": linear.bias})
    torch.testing.assert_close(LowRank(linear, down, up, 0.5)(x), merged(x))
    conv, x = nn.Conv2d(3, 4, 3, stride=2, padding=1), drawn(2, 3, 8, 6)
    down, up = drawn(2, 3, 3, 3), drawn(4, 2, 1, 1)
    weight = conv.weight + 2.0 * torch.einsum("or,rihw->oihw", up[..., 0, 0], down)
    expected = torch.nn.functional.conv2d(x, weight, conv.bias, 2, 1)
    torch.testing.assert_close(LowRank(conv, down, up, 2.0)(x), expected, rtol=1e-4, atol=1e-4)


def test_the_base_is_shared_and_stays_as_it_was():
    base = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    x, before = drawn(2, 4), {key: value.clone() for key, value in base.state_dict().items()}
    answer = base(x)
    other = adapted(base, {"2": (drawn(1, 4), drawn(4, 1), 1.0)})
    assert not torch.equal(other(x), answer) and torch.equal(base(x), answer)
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    assert other[0] is base[0] and other[2].weight is base[2].weight
    assert torch.equal(adapted(base, {"2": (drawn(1, 4), torch.zeros(4, 1), 1.0)})(x), answer)


def test_what_does_not_fit_is_named():
    base = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match="unknown layer '3'"):
        adapted(base, {"3": (drawn(1, 4), drawn(4, 1), 1.0)})
    with pytest.raises(ValueError, match=r"0: the layer is \(4, 4\), the adapter's sides are \(1, 5\) and \(4, 1\)"):
        adapted(base, {"0": (drawn(1, 5), drawn(4, 1), 1.0)})
    with pytest.raises(ValueError, match="for a linear layer or a convolution, got ReLU"):
        adapted(base, {"1": (drawn(1, 4), drawn(4, 1), 1.0)})
    with pytest.raises(ValueError, match="in groups"):
        adapted(base, {"2": (drawn(1, 2, 3, 3), drawn(4, 1, 1, 1), 1.0)})
