"""Surgery by name: what is replaced, shared and refused, and the seam inside attention on the embedded models."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fewstep as fs
from fewstep.networks.blocks import blocks_of
from fewstep.networks.dit import DiT
from fewstep.networks.surgery import Block, Keep, Skip, Stored, compiled_as, has, linked, replaced, without
from fewstep.networks.unet import Attention, UNet


def unet(**options) -> UNet:
    torch.manual_seed(0)
    network = UNet(**({"channels": 3, "size": 8, "width": (16, 24), "classes": 5} | options)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 8, 8, generator=generator), torch.rand(batch, generator=generator)


class Twice(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return 2 * self.inner(*args)


def test_several_paths_under_one_parent_and_at_several_depths():
    network = nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Tanh())
    ).double()
    x = torch.randn(3, 2, dtype=torch.float64)
    before, twice = dict(network.named_modules()), Twice(network[0][1])
    made = replaced(network, {"0.0": nn.Identity(), "0.1": twice, "1.0.0": nn.Identity(), "1.1": nn.Identity()})
    assert torch.equal(made(x), 2 * network[0][1](x))
    assert made.get_submodule("0.1") is twice and list(made.state_dict()) == ["0.1.inner.weight", "0.1.inner.bias"]
    assert dict(network.named_modules()) == before and torch.equal(network(x), network[1][0][0](network[0](x)).tanh())
    again = replaced(made, {"0.0": network[0][0]})  # a replaced one can be replaced in
    assert torch.equal(again(x), 2 * network[0](x)) and torch.equal(made(x), 2 * network[0][1](x))
    assert replaced(network, {}) is network


def test_everything_else_is_shared():
    network, (x, noise), called = unet(), inputs(), []
    made = replaced(network, {"mid.res0": Skip(), "up.1.attn0": Skip()})
    assert {id(p) for p in made.parameters()} < {id(p) for p in network.parameters()}
    assert {id(b) for b in made.buffers()} == {id(b) for b in network.buffers()}
    assert made.get_submodule("mid.res1") is network.get_submodule("mid.res1") and made.up is not network.up
    left = [name for name in network.state_dict() if not name.startswith(("mid.res0.", "up.1.attn0."))]
    assert list(made.state_dict()) == left
    handle = network.register_forward_hook(lambda *_: called.append(1))  # after the copy was made
    made(x, noise)
    handle.remove()
    assert called == [1]
    with torch.no_grad():
        before = made(x, noise)
        network.get_parameter("mid.res1.conv2.weight").mul_(2)
    assert not torch.equal(made(x, noise), before)
    network.double()
    assert {t.dtype for t in [*made.parameters(), *made.buffers()]} == {torch.float64}


def test_changing_the_copy_leaves_the_original():
    network, (x, noise) = unet(), inputs()
    made = replaced(network, {"mid.res0": Skip()})
    expected = network(x, noise)
    del made.mid["attn"]
    made.extra = nn.Linear(1, 1)
    assert "attn" in network.mid and not hasattr(network, "extra")
    assert torch.equal(network(x, noise), expected)
    apart = copy.deepcopy(replaced(network, {"mid.res0": Skip()}))
    assert torch.equal(apart(x, noise), replaced(network, {"mid.res0": Skip()})(x, noise))
    assert not {id(p) for p in apart.parameters()} & {id(p) for p in network.parameters()}


def test_a_linked_tree_has_the_same_tensors_and_modules_of_its_own():
    network = unet().train()
    whole = linked(network)
    pairs = zip(network.named_parameters(), whole.named_parameters(), strict=True)
    assert all(name == other and mine is its for (name, mine), (other, its) in pairs)
    assert all(a is b for a, b in zip(network.buffers(), whole.buffers(), strict=True))
    whole.eval().mid.res0 = Twice(whole.mid.res0)
    assert network.training and not isinstance(network.mid.res0, Twice)
    network.first.requires_grad_(False)
    half = linked(network, trained=False)
    assert half.first.weight is network.first.weight and half.last.weight is not network.last.weight
    assert torch.equal(half(*inputs()), network(*inputs()))


def test_gradients_arrive_in_the_one_set_of_weights():
    network, (x, noise) = unet(), inputs()
    replaced(network, {"mid.res0": Skip()})(x, noise).sum().backward()
    assert network.get_parameter("mid.res1.conv2.weight").grad.abs().sum() > 0
    assert network.get_parameter("mid.res0.conv2.weight").grad is None


def test_threads_share_the_original():
    network, (x, noise), wrong = unet(), inputs(), []
    paths = [(), ("mid.res0",), ("mid.res1", "down.0.res0"), ("mid.attn",)]
    with torch.no_grad():
        expected = [replaced(network, {path: Skip() for path in some})(x, noise) for some in paths]

    def work(k: int) -> None:
        with torch.no_grad():
            for _ in range(10):
                store: dict[str, torch.Tensor] = {}
                parts = {path: Skip() for path in paths[k]}
                keep = {"up.0.res0": Keep(network.get_submodule("up.0.res0"), store, "up")}
                out = replaced(network, parts | keep)(x, noise)
                wrong.extend([k] * (not torch.equal(out, expected[k]) or list(store) != ["up"]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"mid.res": Skip()}, r"unknown path 'mid.res': did you mean .*'mid.res0'"),
        ({"mid.res0.conv1.weight": Skip()}, "unknown path"),
        ({"": Skip()}, "unknown path ''"),
        ({"mid": Skip(), "mid.res0": Skip()}, "'mid.res0' lies inside 'mid', which is replaced as well"),
        ({"mid.res0.conv1": Skip(), "mid": Skip()}, "'mid.res0.conv1' lies inside 'mid'"),
        ({"mid.res0": lambda x, embedding: x}, "must be a module, got <function"),
        ({"mid.attn.words": Skip()}, "unknown path"),  # there is none in this network
    ],
)
def test_what_is_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        replaced(unet(), parts)


def test_what_is_in_place_of_a_block_has_none_of_its_parts():
    network = unet()
    left_out = replaced(network, {"mid.res0": Skip(of=network.get_submodule("mid.res0"))})
    assert has(network, "") and has(network, "mid.res0.conv1") and not has(network, "mid.res0.conv3")
    assert has(left_out, "mid.res0") and has(left_out, "mid.res1.conv1") and not has(left_out, "mid.res0.conv1")


def test_a_name_that_begins_like_another_is_not_inside_it():
    network = nn.ModuleDict({"a": nn.Identity(), "ab": nn.ModuleDict({"c": nn.Identity()})})
    made = replaced(network, {"a": nn.Tanh(), "ab.c": nn.ReLU()})
    assert isinstance(made["a"], nn.Tanh) and isinstance(made["ab"]["c"], nn.ReLU)


def test_a_forward_exchanged_on_the_object_is_refused_where_it_would_run_the_original():
    network, (x, noise) = unet(), inputs()
    compiled = torch.compile(network, backend="eager")
    with pytest.raises(ValueError, match="OptimizedModule was exchanged on the object"):
        replaced(compiled, {"_orig_mod.mid.res0": Skip()})
    skipped = replaced(network, {"mid.res0": Skip()})(x, noise)
    network.compile(backend="eager")  # this one is left behind
    assert torch.equal(replaced(network, {"mid.res0": Skip()})(x, noise), skipped)


def test_a_parametrised_module_on_the_way():
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    nn.utils.parametrizations.weight_norm(network[0][0])
    x = torch.randn(3, 2)
    assert torch.equal(replaced(network, {"0.1": nn.Identity()})(x), network[0][0](x))
    inner = replaced(network, {"0.0.parametrizations.weight": nn.Identity()})
    assert inner[0][0].parametrizations.weight is not network[0][0].parametrizations.weight


def test_skip_returns_the_first_tensor_or_what_its_block_names():
    x, text = torch.randn(2, 3), torch.randn(2, 5)
    assert Skip()(x, text) is x and Skip()(None, 3, hidden=x, text=text) is x
    second = Skip(Block("a", input=1))
    assert second(text, x) is x
    alone = Skip(Block("a", output=0))(x, encoder_hidden_states=text)
    assert isinstance(alone, tuple) and len(alone) == 1 and alone[0] is x
    for output, expected in ((0, (x, text)), (1, (text, x))):
        joint = Skip(Block("a", 0, "hidden", output, True, "words"))
        got = joint(words=text, hidden=x, temb=None)
        assert isinstance(got, tuple) and [id(part) for part in got] == [id(part) for part in expected]
    assert not list(Skip(of=nn.Linear(2, 2)).parameters()) and Skip(of=nn.Linear(2, 7)).out_features == 7
    with pytest.raises(AttributeError, match="out_features"):
        _ = Skip().out_features


def test_what_is_kept_is_what_the_block_returns_and_can_stand_for_it():
    network, (x, noise), store = unet(), inputs(), {}
    for name, block in network.blocks.items():
        kept = replaced(network, {name: Keep(block, store, name)})
        expected = kept(x, noise)
        assert torch.equal(expected, network(x, noise)) and store[name].requires_grad
        block.register_forward_hook(lambda *_: pytest.fail("it has run"))
        stored = replaced(network, {name: Stored(store, name)})
        assert torch.equal(stored(x, noise), expected)
        block._forward_hooks.clear()
    with pytest.raises(ValueError, match="nothing has been kept under 'mid' yet"):
        replaced(network, {"mid.attn": Stored({}, "mid")})(x, noise)
    keep = Keep(network.mid["attn"], store, "attn")
    assert keep.heads == network.mid["attn"].heads  # what reaches into the block finds it


def test_the_blocks_of_a_model_are_those_of_its_network():
    model = fs.load("digits")
    found = blocks_of(model)
    assert list(found) == list(model.network.blocks)
    assert found["down.1.attn0"] == Block("network.down.1.attn0", 1, 0, None, True, None)
    assert [name for name, block in found.items() if block.level == 0] == ["down.0.res0", "down.0.down", "up.0.res0"]
    assert [name for name, block in found.items() if block.skippable] == list(model.network.skippable)
    guided = blocks_of(fs.guide(model, "cfg", scale=2.0))
    assert guided["mid.attn"].path == "model.network.mid.attn"
    assert without(model, []) is model
    with pytest.raises(ValueError, match="no network in this model names its blocks"):
        blocks_of(nn.Linear(2, 2))


class Former(nn.Module):
    """Attention as it was before it had a seam: softmax attention called in the middle of it."""

    def __init__(self, block: Attention):
        super().__init__()
        self.block = block

    def forward(self, x, embedding):
        block = self.block
        qkv = block.qkv(block.norm(x).flatten(2).transpose(1, 2))
        batch, tokens, triple = qkv.shape
        heads, width = block.heads, triple // (3 * block.heads)
        query, key, value = qkv.view(batch, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)
        if block.words is not None:
            words = block.words(embedding[:, 1:])
            more = words.view(batch, words.shape[1], 2, heads, width).permute(2, 0, 3, 1, 4)
            key, value = torch.cat([key, more[0]], dim=2), torch.cat([value, more[1]], dim=2)
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, tokens, triple // 3)
        return x + block.out(out).transpose(1, 2).reshape(x.shape)


EMBEDDED = {"digits": {"label": [0, 3, 10]}, "shapes": {"text": ["a red circle", "a blue square", ""]}}


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_seam_changes_no_bit_of_the_embedded_models(name):
    model = fs.load(name)
    paths = [block.path for block in blocks_of(model).values()]
    parts = {p: Former(model.get_submodule(p)) for p in paths if isinstance(model.get_submodule(p), Attention)}
    assert parts and not [key for key in model.state_dict() if ".core" in key]
    ours, before = (fs.sample(m, 3, steps=4, seed=3, **EMBEDDED[name]) for m in (model, replaced(model, parts)))
    assert torch.equal(ours, before)


class Maps(nn.Module):
    """Attention that keeps its maps."""

    def __init__(self, store: list):
        super().__init__()
        self.store = store

    def forward(self, q, k, v, words):
        maps = F.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        self.store.append((maps, words))
        return maps @ v


@pytest.mark.parametrize("name, words", [("digits", 0), ("shapes", 10)])
def test_maps_are_kept_by_replacing_the_core(name, words):
    model, store = fs.load(name), []
    cores = [path for path, _ in model.named_modules() if path.endswith(".core")]
    assert len(cores) > 1
    looked = replaced(model, {path: Maps(store) for path in cores})
    x, t = torch.randn(3, *model.shape, generator=torch.Generator().manual_seed(0)), torch.tensor(1.0)
    condition = model.check_condition(EMBEDDED[name], 3, x.device)
    with torch.no_grad():
        torch.testing.assert_close(looked(x, t, **condition).x0, model(x, t, **condition).x0, rtol=1e-4, atol=1e-5)
    assert len(store) == len(cores) and {given for _, given in store} == {words}
    for maps, _ in store:
        batch, _, queries, keys = maps.shape
        assert (batch, keys) == (3, queries + words)
        torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:3]))


def test_the_words_are_the_last_keys():
    torch.manual_seed(0)
    seen = []

    class Look(nn.Module):
        def forward(self, q, k, v, words):
            seen.append((q, k, words))
            return F.scaled_dot_product_attention(q, k, v)

    block = replaced(Attention(64, words=7), {"core": Look()})
    x, embedding = torch.randn(2, 64, 3, 5), torch.randn(2, 1 + 4, 7)
    block(x, embedding)
    block(x, embedding.flip(0))
    (q, first, words), (_, second, _) = seen
    assert words == 4 and q.shape == (2, 2, 15, 32) and first.shape == (2, 2, 19, 32)
    assert torch.equal(first[:, :, :15], second[:, :, :15]) and torch.equal(first[:, :, 15:], second[:, :, 15:].flip(0))


def test_the_transformer_has_its_seam_too():
    network, store = DiT(channels=3, size=8, width=64, depth=2), []
    assert {path for path, _ in network.named_modules() if path.endswith("core")} == {
        "block.0.attn.core",
        "block.1.attn.core",
    }
    replaced(network, {"block.1.attn.core": Maps(store)})(*inputs())
    assert [(maps.shape, words) for maps, words in store] == [((2, 2, 16, 16), 0)]


def test_copies_are_compiled_as_their_originals():
    """Those alone that replacing has copied; what is shared keeps what it was compiled to."""

    def compiled(module):
        return module.__dict__.get("_compiled_call_impl")

    model = fs.load("digits")
    model.network.compile()
    model.network.first.compile()
    block = blocks_of(model)["mid.res0"]
    copy = replaced(model, {block.path: Skip(block, model.get_submodule(block.path))})
    assert compiled(copy.network) is None
    compiled_as(model, copy)
    assert compiled(copy.network) is not None and compiled(copy.network) is not compiled(model.network)
    assert copy.network.first is model.network.first and compiled(copy.network.mid) is None
    before = compiled(copy.network)
    compiled_as(model, copy)
    assert compiled(copy.network) is before
