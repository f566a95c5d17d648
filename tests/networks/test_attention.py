"""Rules in the place of attention: on two tokens by hand, where they go, and the blur over a grid."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fewstep.networks.attention import (
    Blurred,
    Identity,
    Recorded,
    attended,
    attentions,
    blur,
    choose,
    grid_of,
    middle,
)
from fewstep.networks.blocks import networks_of
from fewstep.networks.common import Attend
from fewstep.networks.dit import DiT
from fewstep.networks.mlp import MLP
from fewstep.networks.surgery import Block, Skip, replaced
from fewstep.networks.unet import UNet

F64 = torch.float64


def tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=F64) for shape in shapes]


def unet(**options) -> UNet:
    torch.manual_seed(0)
    settings = {"channels": 1, "size": 8, "width": (8, 16), "attention": (4, 8), "classes": None, **options}
    return UNet(**settings).double().eval()


def test_identity_reads_the_picture_alone():
    q, k, v = tensors((1, 2, 2, 3), (1, 2, 5, 3), (1, 2, 5, 3))
    assert torch.equal(Identity()(q, k, v, 3), v[:, :, :2])


def test_maps_of_two_tokens_and_a_word_by_hand():
    q, k, v = tensors((1, 2, 2, 4), (1, 2, 3, 4), (1, 2, 3, 4))
    maps: list[torch.Tensor] = []
    out = Recorded(Attend(), maps)(q, k, v, 1)
    assert torch.equal(out, Attend()(q, k, v, 1))
    for i in range(2):
        heads = []
        for head in range(2):
            scores = [math.exp(float(q[0, head, i] @ k[0, head, j]) / 2) for j in range(3)]
            heads.append([score / sum(scores) for score in scores])
        expected = [sum(row[j] for row in heads) / 2 for j in range(3)]
        torch.testing.assert_close(maps[0][0, i], torch.tensor(expected, dtype=F64), rtol=1e-12, atol=0)


def test_blurred_queries():
    q, k, v = tensors((2, 2, 6, 4), (2, 2, 7, 4), (2, 2, 7, 4))
    exact = Attend()(q, k, v, 1)
    assert torch.equal(Blurred(0.0, (2, 3), Attend())(q, k, v, 1), exact)
    mean = Attend()(q.mean(2, keepdim=True).expand_as(q), k, v, 1)
    torch.testing.assert_close(Blurred(math.inf, (2, 3), Attend())(q, k, v, 1), mean)
    torch.testing.assert_close(Blurred(1000.0, (2, 3), Attend())(q, k, v, 1), mean)
    own = Blurred(0.7, (2, 3), Attend())(q, k, v, 1)
    picture = blur(q.transpose(2, 3).reshape(2, 2, 4, 2, 3), 0.7).reshape(2, 2, 4, 6).transpose(2, 3)
    torch.testing.assert_close(own, Attend()(picture, k, v, 1))
    assert float((own - exact).norm()) < float((mean - exact).norm())


@pytest.mark.parametrize("size", [(8, 8), (9, 5), (2, 3), (1, 4)])
def test_a_blur_is_the_sum_over_the_mirrored_picture(size):
    [x] = tensors((2, *size))
    std, reach = 1.0, 4
    steps = torch.arange(-reach, reach + 1, dtype=F64)
    weights = torch.exp(-0.5 * (steps / std) ** 2)
    weights /= weights.sum()

    def mirrored(i: int, n: int) -> int:
        i %= 2 * n
        return i if i < n else 2 * n - 1 - i

    expected = torch.zeros_like(x)
    for i in range(size[0]):
        for j in range(size[1]):
            for a, wa in zip(range(-reach, reach + 1), weights, strict=True):
                for b, wb in zip(range(-reach, reach + 1), weights, strict=True):
                    expected[:, i, j] += wa * wb * x[:, mirrored(i + a, size[0]), mirrored(j + b, size[1])]
    torch.testing.assert_close(blur(x, std, reach), expected)
    torch.testing.assert_close(blur(x, std, reach).mean((1, 2)), x.mean((1, 2)))


def test_inside_a_large_picture_it_is_the_convolution():
    [x] = tensors((1, 1, 16, 16))
    weights = torch.exp(-0.5 * torch.arange(-4, 5, dtype=F64) ** 2)
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    torch.testing.assert_close(blur(x, 1.0, 4)[..., 4:-4, 4:-4], F.conv2d(x, kernel[None, None]))


def test_blur_keeps_shape_type_and_gradients():
    x = torch.randn(2, 3, 4, 6, requires_grad=True)
    with torch.inference_mode():
        blur(torch.randn(1, 4, 6), 1.25)
    y = blur(x, 1.25)
    assert y.dtype == x.dtype and y.shape == x.shape and blur(x, 0.0) is x
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))  # it is symmetric, and keeps sums
    torch.testing.assert_close(blur(x, math.inf), x.mean((2, 3), keepdim=True).expand_as(x))


def test_a_grid_has_the_pictures_proportions():
    assert grid_of(6, (4, 6)) == (2, 3) and grid_of(6, (6, 4)) == (3, 2) and grid_of(64, (8, 8)) == (8, 8)
    assert grid_of(4096, (64, 64)) == (64, 64) and grid_of(12, (7, 5)) == (4, 3) and grid_of(1, (3, 9)) == (1, 1)


def test_the_middle_of_each_kind_of_network():
    assert choose(attentions(unet()), None) == ["mid.attn"]
    torch.manual_seed(0)
    transformer = DiT(depth=5, width=32)
    assert choose(attentions(transformer), None) == [f"block.{i}.attn" for i in (1, 2, 3)]
    assert choose(attentions(unet(attention=(8,))), None) == ["down.0.attn0", "up.0.attn0"]
    levels = {name: Block(name, level) for name, level in (("down_blocks.0.a", 0), ("up_blocks.1.a", 1))}
    assert middle(levels) == ["up_blocks.1.a"]
    assert middle({"only": Block("only")}) == ["only"]
    assert middle({str(i): Block(str(i)) for i in range(2)}) == ["0", "1"]
    assert middle({str(i): Block(str(i)) for i in range(24)}) == [str(i) for i in range(8, 16)]


def test_rules_go_into_named_blocks_and_leave_the_network():
    network, (x,) = unet(), tensors((2, 1, 8, 8))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=F64))
    t, before = torch.tensor(0.3), dict(network.named_modules())
    expected, paths = network(x, t), []
    made = attended(network, ["mid.attn", "up.1.attn0"], lambda core, path: paths.append(path) or Identity())
    assert paths == ["mid.attn.core", "up.1.attn0.core"]
    by_hand = replaced(network, {path: Identity() for path in paths})
    assert torch.equal(made(x, t), by_hand(x, t)) and not torch.equal(made(x, t), expected)
    assert dict(network.named_modules()) == before and torch.equal(network(x, t), expected)
    same = attended(network, ["mid.attn"], lambda core, path: core)
    assert torch.equal(same(x, t), expected)
    out = replaced(network, {"mid.attn": Skip(of=network.mid["attn"])})
    assert attended(out, ["mid.attn"], lambda core, path: Identity()) is out  # nothing there to change


def test_every_network_of_a_model_is_changed():
    both = nn.ModuleList([first := unet(), unet(), first])
    assert [next(iter(blocks.values())).path.split(".")[0] for blocks in networks_of(both)] == ["0", "1", "2"]
    paths: list[str] = []
    attended(both, ["mid.attn"], lambda core, path: paths.append(path) or core)
    assert paths == [f"{i}.mid.attn.core" for i in range(3)]


def test_refusals():
    network = unet()
    for names in ([], "mid.attn"):
        with pytest.raises(ValueError, match="blocks must be a list of names, at least one"):
            choose(attentions(network), names)
    with pytest.raises(ValueError, match="unknown block 'mid.atn': did you mean 'mid.attn'"):
        choose(attentions(network), ["mid.atn"])
    with pytest.raises(ValueError, match="unknown block 'mid.res0'"):
        choose(attentions(network), ["mid.res0"])
    with pytest.raises(ValueError, match="this network has no attention; its blocks are down.0.res0, "):
        attentions(unet(attention=()))
    with pytest.raises(ValueError, match="no network in this model names its blocks"):
        attentions(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no attention"):
        attentions(MLP((2,)))
