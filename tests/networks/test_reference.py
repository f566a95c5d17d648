"""A transformer with references: by hand, and what they may and may not depend on. Method: reference-dit."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fewstep.conditions.picture import Picture
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.blocks import blocks_of as found_blocks
from fewstep.networks.common import Attend
from fewstep.networks.dit import DiT
from fewstep.networks.reference import Keys, ReferenceDiT
from fewstep.networks.surgery import Keep, replaced, without
from fewstep.processes.vp import VP

F64 = torch.float64


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(references: int = 2, **options) -> ReferenceDiT:
    torch.manual_seed(0)
    settings = {"channels": 3, "size": (4, 6), "patch": 2, "width": 64, "depth": 3, "classes": 5} | options
    made = ReferenceDiT(**settings, references=references).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


X, Y, NOISE, LABEL = drawn(3, 3, 4, 6), drawn(3, 2, 3, 4, 6, seed=1), torch.rand(3), torch.tensor([0, 4, 5])


def test_without_references_it_is_the_plain_transformer():
    own = network(0)
    plain = DiT(3, (4, 6), 2, 64, 3, 5).double().eval()
    plain.load_state_dict(own.state_dict())
    assert torch.equal(own(X, NOISE, LABEL), plain(X, NOISE, LABEL))
    assert not any(isinstance(module, Keys) for module in own.modules())


@torch.no_grad()
def test_attention_by_hand():
    """Each sample and each token in loops: references to themselves, the picture to itself and to all references."""
    net = network(2, depth=2)
    heads = net.block[0]["attn"].heads

    def softmax(q, keys, values):
        out = []
        for h in range(heads):
            part = slice(h * 64 // heads, (h + 1) * 64 // heads)
            weights = [math.exp(float(q[part] @ k[part]) / math.sqrt(64 // heads)) for k in keys]
            out.append(sum(w * v[part] for w, v in zip(weights, values, strict=True)) / sum(weights))
        return torch.cat(out)

    def block(pair, tokens, vector, more):
        scale, shift, gate = pair["attn"].modulation(vector).chunk(3)
        inside = pair["attn"].norm(tokens) * (1 + scale) + shift
        q, k, v = pair["attn"].qkv(inside).split(64, dim=1)
        keys, values = [*k, *(one for own in more for one in own[0])], [*v, *(one for own in more for one in own[1])]
        read = torch.stack([softmax(each, keys, values) for each in q])
        tokens = tokens + gate * pair["attn"].out(read)
        scale, shift, gate = pair["mlp"].modulation(vector).chunk(3)
        inside = pair["mlp"].norm(tokens) * (1 + scale) + shift
        return tokens + gate * pair["mlp"].out(F.gelu(pair["mlp"].wide(inside), approximate="tanh")), (k, v)

    found = net(X, NOISE, LABEL, Y)
    for b in range(3):
        states = [net.tokens(Y[b, r : r + 1])[0] for r in range(2)]
        tokens, vector = net.tokens(X[b : b + 1])[0], F.silu(net.embedding(NOISE, LABEL, 3))[b]
        for pair in net.block:
            more = []
            for r in range(2):
                states[r], own = block(pair, states[r], F.silu(net.kind.weight[r]), [])
                more.append(own)
            tokens, _ = block(pair, tokens, vector, more)
        torch.testing.assert_close(net.picture(tokens[None], vector[None])[0], found[b])


def test_references_see_neither_picture_nor_noise_level():
    net, store = network(), {}
    watched = replaced(net, {"keys": Keep(net.keys, store, "keys")})
    x, y, noise = X.clone().requires_grad_(), Y.clone().requires_grad_(), NOISE.double().requires_grad_()
    out = watched(x, noise, LABEL, y)
    kept = store["keys"]
    assert kept.shape == (3, 3, 2 * 6, 2 * 64)
    for one in torch.autograd.grad(kept.square().sum(), (x, noise), allow_unused=True, retain_graph=True):
        assert one is None  # there is no way from one to the other
    by_y = torch.autograd.grad(kept[0, :, :6].square().sum(), y, retain_graph=True)[0]
    assert bool(by_y[0, 0].abs().amax() > 0) and not by_y[0, 1].any() and not by_y[1:].any()  # each by itself
    by_all = torch.autograd.grad(out[0].square().sum(), y)[0]
    assert bool((by_all[0].abs().amax((1, 2, 3)) > 1e-6).all()) and not by_all[1:].any()
    with torch.no_grad():
        watched(drawn(3, 3, 4, 6, seed=5), NOISE + 0.3, torch.tensor([1, 2, 3]), Y)
        assert torch.equal(store["keys"], kept)
        assert torch.equal(net.read(Y), kept)


@torch.no_grad()
def test_the_number_of_a_reference_matters_and_replaces_the_time():
    net = network()
    assert not torch.allclose(net(X, NOISE, LABEL, Y), net(X, NOISE, LABEL, Y.flip(1)))
    swapped = network()
    swapped.kind.weight.copy_(net.kind.weight.flip(0))
    torch.testing.assert_close(swapped(X, NOISE, LABEL, Y.flip(1)), net(X, NOISE, LABEL, Y))  # their order alone not


@torch.no_grad()
def test_one_reference_with_and_without_its_axis_and_one_for_all_rows():
    net, store = network(1), {}
    y = Y[:, 0]
    assert torch.equal(net(X, NOISE, LABEL, y), net(X, NOISE, LABEL, y[:, None]))
    watched = replaced(net, {"keys": Keep(net.keys, store, "keys")})
    shared = watched(X, NOISE, LABEL, y[:1].expand(3, -1, -1, -1))
    assert store["keys"].stride(0) == 0  # read once
    torch.testing.assert_close(shared, net(X, NOISE, LABEL, y[:1].repeat(3, 1, 1, 1)), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_batch_is_its_single_samples():
    net = network()
    whole = net(X, NOISE, LABEL, Y)
    alone = [net(X[[b]], NOISE[[b]], LABEL[[b]], Y[[b]]) for b in range(3)]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=0, atol=1e-12)


def test_gradient_reaches_every_parameter_and_it_starts_at_zero():
    net = network()
    net(drawn(6, 3, 4, 6), torch.rand(6), torch.arange(6), drawn(6, 2, 3, 4, 6)).square().sum().backward()
    for name, parameter in net.named_parameters():
        rows = parameter.grad if name in ("embedding.label.weight", "kind.weight") else parameter.grad.view(1, -1)
        assert rows.abs().sum(1).all(), name
    torch.manual_seed(0)
    fresh = ReferenceDiT(3, (4, 6), references=2)
    assert not fresh(X.float(), NOISE, LABEL, Y.float()).any()


@torch.no_grad()
def test_blocks_their_seam_and_surgery():
    net, seen = network(), []

    class Ran(torch.nn.Module):
        def forward(self, q, k, v, words):
            seen.append((q.shape[2], k.shape[2], words))
            return Attend()(q, k, v, words)

    cores = {f"block.{i}.attn.core": Ran() for i in range(3)}
    assert torch.equal(replaced(net, cores)(X, NOISE, LABEL, Y), net(X, NOISE, LABEL, Y))
    assert seen == [(6, 18, 12)] * 3  # references come where a caption's words do; their own attention is none of it
    found = found_blocks(net)
    assert list(found) == [f"block.{i}.{name}" for i in range(3) for name in ("attn", "mlp")]
    store: dict[str, torch.Tensor] = {}
    short = replaced(without(net, [found["block.0.mlp"], found["block.1.attn"]]), {"keys": Keep(net.keys, store, "k")})
    assert not torch.equal(short(X, NOISE, LABEL, Y), net(X, NOISE, LABEL, Y))
    assert torch.equal(store["k"], net.read(Y))


def test_configuration_and_bad_input():
    net = network()
    config = net.config()
    assert config.pop("network") == "reference-dit" and config["references"] == 2
    again = ReferenceDiT(**config).double().eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(X, NOISE, LABEL, Y), net(X, NOISE, LABEL, Y))
    with pytest.raises(ValueError, match="references must be at least 0, got -1"):
        ReferenceDiT(references=-1)
    with pytest.raises(ValueError, match=r"y must hold the references, \(3, 2, 3, 4, 6\), got nothing"):
        net(X, NOISE, LABEL)
    for y in (Y[:, :1], Y[:2], Y[..., :4], Y[:, 0]):
        with pytest.raises(ValueError, match=r"y must hold the references, \(3, 2, 3, 4, 6\), got \("):
            net(X, NOISE, LABEL, y)
    with pytest.raises(ValueError, match="built without references"):
        network(0)(X, NOISE, LABEL, Y)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 3, 4, 6\)"):
        net(X[..., :4], NOISE, LABEL, Y)
    model = NetworkDenoiser(net, VP(), shape=(3, 4, 6), conditions={"y": Picture((2, 3, 4, 6))})
    with pytest.raises(ValueError, match=r"this model needs y, a tensor \(2, 3, 4, 6\)"):
        model.check_condition({}, 3, X.device)
