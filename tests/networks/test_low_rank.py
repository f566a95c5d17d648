"""Layers with adapters beside them: PEFT's answers, and a base that nobody writes to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.networks.low_rank import LowRank, LowRankRows, adapted, merged, put_in, summed

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


def test_several_add_up_in_any_order_beside_the_weights_and_in_them():
    base = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    sides = [(drawn(r, 3, 3, 3), drawn(4, r, 1, 1), s) for r, s in ((2, 0.5), (3, -1.0), (1, 0.25))]
    weight = base[0].weight.double()
    for down, up, scale in sides:
        weight = weight + scale * torch.einsum("or,rihw->oihw", up[..., 0, 0].double(), down.double())
    made, back = merged(base, {"0": sides}), merged(base, {"0": sides[::-1]})
    torch.testing.assert_close(made[0].weight.double(), weight, rtol=0, atol=1e-6)
    assert torch.equal(made[0].weight, back[0].weight) and not torch.equal(made[0].weight, base[0].weight)
    beside = adapted(base, {"0": summed(sides)})
    x = drawn(2, 3, 8, 6)
    torch.testing.assert_close(beside(x), made(x), rtol=1e-4, atol=1e-4)
    plain = put_in(beside)
    torch.testing.assert_close(plain[0].weight, made[0].weight, rtol=0, atol=1e-6)
    assert put_in(plain) is plain and list(plain.state_dict()) == list(base.state_dict())
    with pytest.raises(ValueError, match=r"0: the layer is \(4, 3, 3, 3\), the adapter's sides are"):
        merged(base, {"0": [(drawn(2, 5), drawn(4, 2), 1.0)]})


def test_rows_have_adapters_of_their_own():
    linear, x = nn.Linear(5, 7), drawn(3, 4, 5)
    down, up = drawn(3, 2, 5), drawn(3, 7, 2)
    found = LowRankRows(linear, down, up)(x)
    for row in range(3):
        torch.testing.assert_close(found[row], LowRank(linear, down[row], up[row], 1.0)(x[row]))
    with pytest.raises(ValueError, match="a layer sees 2 rows, and 3 have an adapter"):
        LowRankRows(linear, down, up)(x[:2])


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_of_rows_are_those_of_each_row(stride):
    conv = nn.Conv2d(3, 5, 3, stride=stride, padding=1)
    down, up, x = drawn(4, 2, 3, 3, 3), drawn(4, 5, 2), drawn(4, 3, 6, 5)
    found = LowRankRows(conv, down, up)(x)
    for row in range(4):
        alone = LowRank(conv, down[row], up[row, :, :, None, None], 1.0)(x[row : row + 1])
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-4, atol=1e-4)
