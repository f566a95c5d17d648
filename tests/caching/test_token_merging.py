"""Token merging by hand, without loss where tokens are equal, in our networks and diffusers'. Method: token-merging."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.caching.deepcache import deepcache
from fewstep.caching.token_merging import Merging, TokenMerging, Weighed, _sides
from fewstep.conditions.label import Label
from fewstep.conditions.text import Text
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.attention import Identity, attended
from fewstep.networks.common import Attend
from fewstep.networks.dit import DiT
from fewstep.networks.surgery import replaced
from fewstep.networks.unet import Attention, UNet
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

F64 = torch.float64


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def shaken(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.double().eval()


def unet(**options) -> NetworkDenoiser:
    torch.manual_seed(0)
    settings = {"channels": 1, "size": (8, 12), "width": (8, 16), "attention": (4, 8), "classes": 3} | options
    conditions = {"text": Text(("a", "b", "c"), 4)} if "vocabulary" in settings else {"label": Label(3)}
    return NetworkDenoiser(shaken(UNet(**settings)), VP(), "v", (1, *settings["size"]), conditions)


def dit() -> NetworkDenoiser:
    torch.manual_seed(0)
    return NetworkDenoiser(shaken(DiT(1, (8, 12), 2, 32, 3, 3)), VP(), "v", (1, 8, 12), {"label": Label(3)})


class Alone(nn.Module):
    """One attention of a UNet over the pixels themselves, and over `words` where there are any."""

    def __init__(self, words: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = Attention(8, words)
        nn.init.normal_(self.attn.out.weight)

    @property
    def blocks(self):
        return {"attn": self.attn}

    def forward(self, x, noise, words=None):
        return self.attn(x, torch.zeros(len(x), 1, 1) if words is None else words)


T = torch.tensor(0.4, dtype=F64)
LABEL = {"label": torch.tensor([0, 1, 2])}


def test_the_matching_by_hand():
    """24 tokens of 4x6 in two samples, matched, merged and copied back in loops."""
    x, ratio, stride, seed = drawn(2, 24, 5), 0.4, (2, 3), 7
    to, of = (side.tolist() for side in _sides(24, (4, 6), stride, seed))
    assert sorted(to + of) == list(range(24)) and of == sorted(of)
    assert [(i // 6 // 2, i % 6 // 3) for i in to] == [(0, 0), (0, 1), (1, 0), (1, 1)]  # one in each cell
    merging = Merging(ratio, (8, 12), stride, seed)
    found = merging.merged(x)
    y = drawn(2, 15, 3, seed=1)
    answers = merging.restored(y)
    for b in range(2):
        cosine = {
            (i, j): float(x[b, i] @ x[b, j]) / math.sqrt(float(x[b, i] @ x[b, i]) * float(x[b, j] @ x[b, j]))
            for i in of
            for j in to
        }
        best = {i: max(to, key=lambda j: cosine[i, j]) for i in of}
        order = sorted(of, key=lambda i: -cosine[i, best[i]])
        gone, stay = order[: int(ratio * 24)], order[int(ratio * 24) :]
        groups = [[j, *(i for i in gone if best[i] == j)] for j in to] + [[i] for i in stay]
        assert len(groups) == found.shape[1] == 15
        for place, group in enumerate(groups):
            torch.testing.assert_close(found[b, place], sum(x[b, i] for i in group) / len(group))
            assert merging.sizes[b, place] == len(group)
            for i in group:
                assert torch.equal(answers[b, i], y[b, place])


def test_destinations_of_every_cell_follow_from_the_seed_alone():
    for size, stride in (((5, 7), (2, 2)), ((1, 6), (2, 2)), ((9, 4), (4, 3))):
        tokens, rows = size[0] * size[1], -(-size[0] // stride[0])
        seen = set()
        for seed in range(100):
            to, of = _sides(tokens, size, stride, seed)
            cells = [(int(i) // size[1] // stride[0], int(i) % size[1] // stride[1]) for i in to]
            assert len(set(cells)) == len(cells) == rows * -(-size[1] // stride[1])
            assert len(of) == tokens - len(to)
            seen |= set(to.tolist())
        assert seen == set(range(tokens))  # each token is one in some draw


@pytest.mark.parametrize("make", [unet, dit])
@torch.no_grad()
def test_a_ratio_of_zero_is_the_model_bit_for_bit(make):
    model, x = make(), drawn(3, 1, 8, 12)
    expected = model(x, T, **LABEL).value
    assert torch.equal(TokenMerging(model, 0.0)(x, T, **LABEL).value, expected)
    assert torch.equal(TokenMerging(model, 0.01)(x, T, **LABEL).value, expected)  # no whole token
    before = dict(model.named_modules())
    for ratio in (0.25, 0.75):
        assert not torch.equal(TokenMerging(model, ratio)(x, T, **LABEL).value, expected)
    assert dict(model.named_modules()) == before and torch.equal(model(x, T, **LABEL).value, expected)


@pytest.mark.parametrize("words", [None, 6])
@torch.no_grad()
def test_equal_tokens_are_merged_without_loss(words):
    """Pictures that are constant in each cell, three quarters of whose tokens say nothing new."""
    network = Alone(words).double().eval()
    model = NetworkDenoiser(network, VP(), "eps", (8, 4, 6))
    x = drawn(3, 8, 2, 3).repeat_interleave(2, 2).repeat_interleave(2, 3)
    given = {} if words is None else {"words": drawn(3, 4, words, seed=3)}
    expected = model(x, T, **given).value
    for seed in range(3):
        close = TokenMerging(model, 0.75, seed=seed)(x, T, **given).value
        torch.testing.assert_close(close, expected, rtol=0, atol=1e-10)
    # Half of them leaves some that count more often than others, which is made up for only beside words.
    half = TokenMerging(model, 0.5)(x, T, **given).value
    assert (float((half - expected).abs().max()) < 1e-10) == (words is not None)
    single = {name: value.float() for name, value in given.items()}
    merged = TokenMerging(model.float(), 0.75)(x.float(), T, **single).value
    torch.testing.assert_close(merged, expected.float(), rtol=0, atol=1e-5)


def test_a_merged_token_counts_as_often_as_those_it_stands_for():
    merging = Merging(0.5, (2, 3), (2, 3), 0)
    merging.match(drawn(2, 6, 4))
    q, k, v = drawn(2, 2, 3, 4), drawn(2, 2, 5, 4, seed=1), drawn(2, 2, 5, 4, seed=2)
    found = Weighed(merging)(q, k, v, 2)
    for b in range(2):
        sizes = [*merging.sizes[b].tolist(), 1, 1]
        for h in range(2):
            weights = torch.tensor(sizes, dtype=F64) * torch.exp(q[b, h] @ k[b, h].T / 2)
            torch.testing.assert_close(found[b, h], (weights / weights.sum(1, keepdim=True)) @ v[b, h])
    assert torch.equal(Weighed(merging)(q, k[:, :, :3], v[:, :, :3], 0), Attend()(q, k[:, :, :3], v[:, :, :3], 0))


@pytest.mark.parametrize("make", [unet, dit])
@torch.no_grad()
def test_a_batch_is_its_single_samples(make):
    merged, x = TokenMerging(make(), 0.5, perceptron=make is dit), drawn(3, 1, 8, 12)
    whole = merged(x, T, **LABEL).value
    for row in range(3):
        alone = merged(x[[row]], T, label=LABEL["label"][[row]]).value
        torch.testing.assert_close(alone, whole[[row]], rtol=0, atol=1e-12)


@torch.no_grad()
def test_which_blocks_and_where():
    model, x = unet(), drawn(3, 1, 8, 12)
    assert TokenMerging(model)._names == ["down.0.attn0", "up.0.attn0"]  # of the finest resolution
    assert TokenMerging(dit())._names == [f"block.{i}.attn" for i in range(3)]
    one = TokenMerging(model, 0.5, ["mid.attn"], (2, 2), 5)
    merging, attn = Merging(0.5, (8, 12), (2, 2), 5), model.network.mid["attn"]

    class ByHand(nn.Module):
        def forward(self, x, embedding):
            tokens = merging.merged(attn.norm(x).flatten(2).transpose(1, 2))
            q, k, v = (each.unflatten(2, (attn.heads, -1)).transpose(1, 2) for each in attn.qkv(tokens).chunk(3, 2))
            read = attn.out((q @ k.mT / math.sqrt(q.shape[3])).softmax(3).matmul(v).transpose(1, 2).flatten(2))
            return x + merging.restored(read).transpose(1, 2).reshape(x.shape)

    expected = replaced(model, {"network.mid.attn": ByHand()})(x, T, **LABEL).value
    torch.testing.assert_close(one(x, T, **LABEL).value, expected, rtol=0, atol=1e-12)
    assert not torch.equal(expected, model(x, T, **LABEL).value)


@torch.no_grad()
def test_perceptrons_of_our_transformer():
    model, x = dit(), drawn(3, 1, 8, 12)
    merging, mlp = Merging(0.5, (8, 12), (2, 2), 0), model.network.block[1]["mlp"]
    attention = TokenMerging(model, 0.5, ["block.1.attn"])

    class ByHand(nn.Module):
        def forward(self, x, embedding):
            scale, shift, gate = mlp.modulation(embedding)[:, None].chunk(3, 2)
            return x + gate * merging.restored(mlp.inner(merging.merged(mlp.norm(x) * (1 + scale) + shift)))

    by_hand = replaced(attention, {"model.network.block.1.mlp": ByHand()})(x, T, **LABEL).value
    both = TokenMerging(model, 0.5, ["block.1.attn"], perceptron=True)(x, T, **LABEL).value
    torch.testing.assert_close(both, by_hand, rtol=0, atol=1e-12)
    assert not torch.equal(both, attention(x, T, **LABEL).value)


@torch.no_grad()
def test_words_of_captions_are_never_merged():
    model, x = unet(vocabulary=3, classes=None, captions=4), drawn(2, 1, 8, 12)
    seen = []

    class Count(nn.Module):
        def forward(self, q, k, v, words):
            seen.append((q.shape[2], k.shape[2], words))
            return Attend()(q, k, v, words)

    counted = TokenMerging(model, 0.5, ["mid.attn"])
    named = model.check_condition({"text": "a b c"}, 2, x.device)
    value = counted(x, T, **named).value
    parts = counted._parts((8, 12))
    weighed = parts["network.mid.attn.core"]
    parts["network.mid.attn.core"] = Count()
    other = replaced(model, parts)(x, T, **named).value
    assert seen == [(12, 16, 4)] and weighed.merging is not None  # of 24 tokens; the words count against their sizes
    assert not torch.equal(other, value) and not torch.equal(value, model(x, T, **named).value)


@torch.no_grad()
def test_runs_branches_and_other_surgery():
    model, x = unet(attention=(4,)), drawn(2, 1, 8, 12)
    made = plan(model.process, "ddim", 4)
    merged = TokenMerging(model, 0.5)
    inside, outside = fs.guide(merged, "cfg", scale=2.0), TokenMerging(fs.guide(model, "cfg", scale=2.0), 0.5)
    torch.testing.assert_close(made(inside, x, label=1, dtype=F64), made(outside, x, label=1, dtype=F64))
    # What replaces or reads attention finds it whole.
    perturbed = fs.guide(merged, "pag", scale=1.0)(x, T, label=LABEL["label"][:2]).value
    own = merged(x, T, label=LABEL["label"][:2]).value
    weak = TokenMerging(attended(model, ["mid.attn"], lambda core, path: Identity()), 0.5)
    names = {"label": LABEL["label"][:2]}
    torch.testing.assert_close(perturbed, 2 * own - weak(x, T, **names).value)
    assert torch.equal(TokenMerging(merged, 0.5)(x, T, **names).value, own)  # merged once
    for stack in (deepcache(merged, 2), TokenMerging(deepcache(model, 2), 0.5)):
        found = made(stack, x, label=1, dtype=F64)
        torch.testing.assert_close(found, made(deepcache(merged, 2), x, label=1, dtype=F64))
        assert not torch.equal(found, made(merged, x, label=1, dtype=F64))


def test_gradients_pass():
    model, x = dit(), drawn(2, 1, 8, 12).requires_grad_()
    value = TokenMerging(model, 0.5, perceptron=True)(x, T, label=LABEL["label"][:2]).value
    [grad] = torch.autograd.grad(value.square().sum(), x)
    step = 1e-6 * drawn(2, 1, 8, 12, seed=9)
    merged = TokenMerging(model, 0.5, perceptron=True)
    with torch.no_grad():
        ends = [merged(x + sign * step, T, label=LABEL["label"][:2]).value.square().sum() for sign in (1, -1)]
    assert float(ends[0] - ends[1]) == pytest.approx(2 * float((grad * step).sum()), rel=1e-4)


@pytest.mark.parametrize("kind", ["DDPMPipeline", "DiTPipeline", "StableDiffusionPipeline"])
@torch.no_grad()
def test_networks_of_diffusers(kind):
    pytest.importorskip("diffusers")
    from claims.pipelines import matching, tiny
    from fewstep.hub.pipeline import PipelineDenoiser

    model = PipelineDenoiser(tiny(kind, matching("ddim", kind)))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.network.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.double()
    x, t = drawn(2, *model.shape), torch.tensor(0.4 * model.process.t_max, dtype=F64)
    asked = {"text": ["a cat", "the red dog"]} if "text" in model.conditions else {}
    named = model.check_condition(asked | ({"label": [3, 1]} if "label" in model.conditions else {}), 2, x.device)
    expected = model(x, t, **named).value
    assert torch.equal(TokenMerging(model, 0.0)(x, t, **named).value, expected)
    has_perceptron = kind != "DDPMPipeline"
    merged = TokenMerging(model, 0.5, perceptron=has_perceptron)
    found = merged(x, t, **named).value
    assert found.shape == x.shape and 0 < float((found - expected).norm() / expected.norm()) < 0.5
    alone = merged(x[:1], t, **{name: value[:1] for name, value in named.items()}).value
    torch.testing.assert_close(alone, found[:1], rtol=0, atol=1e-10)
    attention = TokenMerging(model, 0.5)
    paths = [path for path in attention._parts((8, 8)) if path.endswith(("to_q", "to_out.0"))]
    assert paths and torch.equal(attention(x, t, **named).value, found) == (not has_perceptron)
    before = attention(x, t, **named).value
    if kind == "StableDiffusionPipeline":
        model.network.fuse_qkv_projections()
        torch.testing.assert_close(attention(x, t, **named).value, before, rtol=0, atol=1e-10)


def test_bad_input():
    model = unet()
    for ratio in (-0.1, 0.76, math.nan, True, "half"):
        with pytest.raises(ValueError, match=r"ratio must be 0 to 0.75, as one token in each cell of 2x2 stays and no"
                                             r" more can be merged than there are"):  # fmt: skip
            TokenMerging(model, ratio)
    assert TokenMerging(model, 0.8, stride=(2, 4)).ratio == 0.8
    for stride in (0, (2, 0), (2, 2, 2), (1.5, 2)):
        with pytest.raises(ValueError, match="stride must be a positive integer or"):
            TokenMerging(model, stride=stride)
    for seed in (-1, 0.5, True):
        with pytest.raises(ValueError, match="seed must be a whole number of at least 0"):
            TokenMerging(model, seed=seed)
    with pytest.raises(ValueError, match="unknown block 'mid.atn': did you mean 'mid.attn'"):
        TokenMerging(model, blocks=["mid.atn"])
    with pytest.raises(ValueError, match="blocks must be a list of names, at least one"):
        TokenMerging(model, blocks=[])
    with pytest.raises(ValueError, match="this network has no attention"):
        TokenMerging(unet(attention=()))
    with pytest.raises(ValueError, match="no network in this model names its blocks"):
        TokenMerging(NetworkDenoiser(nn.Linear(2, 2), VP(), shape=(2,)))
    with pytest.raises(ValueError, match=r"there is no perceptron beside 'network.down.0.attn0'"):
        TokenMerging(model, perceptron=True)
    other = Alone()
    other.attn.qkv, other.attn.both = None, other.attn.qkv
    with pytest.raises(ValueError, match="the tokens of 'network.attn' cannot be merged: it has no projection 'qkv'"):
        TokenMerging(NetworkDenoiser(other, VP(), shape=(8, 4, 6)))
