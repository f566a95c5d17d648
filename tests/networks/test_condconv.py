"""CondConv2d: one expert is a plain convolution, many are the mixture of their answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fewstep.networks.condconv import ROUTINGS, CondConv2d
from fewstep.networks.unet import UNet

F64 = torch.float64


def inputs(channels=4, width=6, batch=3):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, channels, 5, 7, generator=generator, dtype=F64),
            torch.randn(batch, width, generator=generator, dtype=F64))  # fmt: skip


def layer(seed=0, **options):
    torch.manual_seed(seed)
    return CondConv2d(4, 8, 6, **options).double()


def test_one_expert_is_a_plain_convolution():
    made, (x, embedding) = layer(experts=1), inputs()
    plain = F.conv2d(x, made.weight[0], made.bias[0], padding=1)
    torch.testing.assert_close(made(x, embedding), plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(made.float()(x.float(), embedding.float()), plain.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, None, 1), (2, 0, 2)])
def test_it_is_the_mixture_of_the_experts_answers(routing, stride, padding, groups):
    made = layer(experts=3, routing=routing, stride=stride, padding=padding, groups=groups)
    x, embedding = inputs()
    logits = made.route(embedding)
    shares = logits.softmax(1) if routing == "softmax" else logits.sigmoid()
    assert float(shares.detach().std(1).min()) > 0.02  # experts are told apart from the start
    pad = 1 if padding is None else padding
    answers = [F.conv2d(x, w, b, stride, pad, groups=groups) for w, b in zip(made.weight, made.bias, strict=True)]
    wanted = sum(shares[:, i, None, None, None] * answer for i, answer in enumerate(answers))
    torch.testing.assert_close(made(x, embedding), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("experts", [1, 4])
def test_copies_of_a_kernel_are_that_convolution_and_part_when_trained(routing, experts):
    made, (x, embedding) = layer(experts=experts, routing=routing), inputs()
    plain = nn.Conv2d(4, 8, 3, padding=1).double()
    made.copy_kernel(plain.weight, plain.bias)
    torch.testing.assert_close(made(x, embedding), plain(x), rtol=0, atol=1e-12)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (made(x, embedding) - 1).square().mean().backward()
        optimizer.step()
    if experts > 1:
        shares = made.shares(embedding)
        moved = made.weight - made.weight.mean(0)
        assert float(moved.detach().abs().max()) > 1e-6 and float(shares.detach().std(1).max()) > 1e-6


def test_samples_do_not_meet():
    made, (x, embedding) = layer(experts=3), inputs()
    alone = torch.cat([made(x[[i]], embedding[[i]]) for i in range(3)])
    torch.testing.assert_close(made(x, embedding), alone, rtol=0, atol=1e-12)


def test_a_unet_has_experts_at_the_levels_of_what_it_lacks():
    def levels(**options):
        network = UNet(1, 8, (8, 16), 2, (4,), **options)
        return {name.rsplit(".", 1)[0] for name, one in network.named_modules() if isinstance(one, CondConv2d)}

    assert levels() == set()
    fine = {f"{way}.0.res{index}" for way in ("down", "up") for index in (0, 1)}
    coarse = {f"{way}.1.res{index}" for way in ("down", "up") for index in (0, 1)} | {"mid.res0", "mid.res1"}
    assert levels(experts=2) == fine | coarse
    assert levels(experts=2, drop=["mid.res0", "mid.attn"]) == coarse - {"mid.res0"}
    assert levels(experts=2, drop=["down.0.res1"]) == fine - {"down.0.res1"}
    network = UNet(1, 8, (8, 16), 2, (4,), drop=["mid.res0", "mid.attn", "mid.res0"])
    assert "mid.res0" not in network.blocks and "mid.res1" in network.blocks
    assert not any(name.startswith("mid.res0") for name in network.state_dict())


def test_bad_input():
    with pytest.raises(ValueError, match="experts must be at least 1, got 0"):
        CondConv2d(4, 8, 6, 0)
    with pytest.raises(ValueError, match="unknown routing 'softmx': did you mean 'softmax'"):
        CondConv2d(4, 8, 6, routing="softmx")
    with pytest.raises(ValueError, match="unknown block 'mid.res2': did you mean 'mid.res"):
        UNet(1, 8, (8,), drop=["mid.res2"], attention=())
    with pytest.raises(ValueError, match="experts=0"):
        UNet(1, 8, (8,), experts=0, attention=())
