"""Low-rank adapters on both networks: what they leave alone, what they merge into, and the file they make."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn
from training.adapted import SHAPE, answer, denoiser, disturbed

from fewstep.core.methods import find
from fewstep.denoisers.folder import load_model, save_model
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.training.adapter_files import load_lora, save_lora
from fewstep.training.fit import fit
from fewstep.training.lora import (
    add_lora,
    add_timed_lora,
    layers,
    lora_parameters,
    merge_lora,
    set_scale,
)

pytest.importorskip("peft")


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_a_fresh_adapter_and_one_at_scale_zero_change_no_bit(name):
    model = denoiser(name)
    assert torch.equal(answer(add_lora(model, 2)), answer(model))
    made = disturbed(model)
    assert not torch.allclose(answer(made), answer(model), atol=1e-2)
    set_scale(made, 0.0)
    assert torch.equal(answer(made), answer(model))


@pytest.mark.parametrize("name", ["unet", "dit"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_merged_is_plain_and_answers_alike(name, scale, tmp_path):
    model = denoiser(name)
    made = disturbed(model)
    set_scale(made, scale)
    plain = merge_lora(made)
    assert answer(plain).sub(answer(made)).abs().max() < 1e-5
    assert plain.network.state_dict().keys() == model.network.state_dict().keys()
    save_model(plain, tmp_path / "merged")
    assert torch.equal(answer(load_model(tmp_path / "merged")), answer(plain))
    assert all(parameter.requires_grad for parameter in plain.parameters())


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_blocks_and_config_stay(name):
    model = denoiser(name)
    made = disturbed(model)
    assert list(made.network.blocks) == list(model.network.blocks)
    assert made.network.config() == model.network.config()
    seen: list[str] = []
    for block, module in made.network.blocks.items():
        module.register_forward_hook(lambda *_, block=block: seen.append(block))
    answer(made)
    assert seen == list(model.network.blocks)


def test_a_merged_layer_is_the_sum_in_closed_form():
    model = denoiser()
    made = find("lora")(model, 3, ["mid.res0.conv1", "mid.res0.modulation"], alpha=6.0)
    for parameter in lora_parameters(made):
        nn.init.normal_(parameter)
    plain = merge_lora(made)
    for path in ("mid.res0.conv1", "mid.res0.modulation"):
        layer, weight = made.network.get_submodule(path), model.network.get_submodule(path).weight
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        product = (b.flatten(1) @ a.flatten(1)).view_as(weight)
        wanted = weight + 6.0 / 3 * product
        torch.testing.assert_close(plain.network.get_submodule(path).weight, wanted, atol=1e-5, rtol=1e-5)


def test_targets_name_layers_their_ends_or_what_holds_them():
    model = denoiser()
    assert "first" in layers(model) and "embedding.first" in layers(model)
    assert layers(model, ["mid.attn"]) == ["mid.attn.qkv", "mid.attn.out"]
    assert all(name.endswith("qkv") for name in layers(model, ["qkv"])) and layers(model, ["qkv"])
    made = add_lora(model, 2, ["mid.attn.qkv"])
    assert len(lora_parameters(made)) == 2  # not every layer whose path ends so
    assert [p.shape for p in lora_parameters(made)] == [(2, 12), (36, 2)]
    with pytest.raises(ValueError, match="qkv"):
        add_lora(model, 2, ["qkw"])
    with pytest.raises(ValueError, match="rank"):
        add_lora(model, 0)
    with pytest.raises(ValueError, match="merge"):
        add_lora(made, 2)
    with pytest.raises(ValueError, match="no adapter"):
        merge_lora(model)


def test_only_the_adapter_trains():
    model = denoiser()
    made = add_lora(model, 2)
    assert {p for p in made.parameters() if p.requires_grad} == set(lora_parameters(made))
    before = copy.deepcopy(made.network.state_dict())
    data = torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(2))
    tuned = fit(made, data, steps=5, batch=4, lr=1e-2)
    for key, value in tuned.network.state_dict().items():
        if "lora_B" in key:
            assert not torch.equal(value, before[key]), key
        elif "lora_" not in key:
            assert torch.equal(value, before[key]), key
    assert not torch.equal(answer(tuned), answer(model))
    again = fit(add_lora(model, 2), data, steps=5, batch=4, lr=1e-2)
    assert torch.equal(answer(again), answer(tuned))


def test_without_peft_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"fewstep\[finetune\]"):
        add_lora(denoiser(), 2)


def test_several_adapters_add_up():
    model = denoiser()
    made = add_lora(model, 2, names=("one", "two"))
    for parameter in lora_parameters(made):
        nn.init.normal_(parameter, std=0.05)
    both = answer(made)
    set_scale(made, 0.0, "two")
    one = answer(made)
    assert not torch.allclose(one, both, atol=1e-3) and not torch.allclose(one, answer(model), atol=1e-3)
    assert answer(merge_lora(made)).sub(one).abs().max() < 1e-5
    assert len(lora_parameters(made, "two")) * 2 == len(lora_parameters(made))
    with pytest.raises(ValueError, match="one adapter a file"):
        save_lora(made, "adapter.safetensors")


def timed(model: NetworkDenoiser, times=(0.2, 1.0, 5.0)) -> NetworkDenoiser:
    made = add_timed_lora(model, times, 2)
    for number, parameter in enumerate(lora_parameters(made)):
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
    return made


def alone(model: NetworkDenoiser, made: NetworkDenoiser, name: str) -> NetworkDenoiser:
    """The model with one of the timed adapters as an ordinary one."""
    single = add_lora(model, 2)
    with torch.no_grad():
        for own, other in zip(lora_parameters(single), lora_parameters(made, name), strict=True):
            own.copy_(other)
    return single


@pytest.mark.slow
def test_timed_adapters_are_alone_at_their_times_and_blend_between(tmp_path):
    model = denoiser()
    made = timed(model)
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([0, 2, 3])
    one = {name: alone(model, made, name) for name in "012"}
    with torch.no_grad():
        # EDM is told log(sigma) / 4, which rises: the least noise has adapter 0.
        for t, name in ((0.2, "0"), (1.0, "1"), (5.0, "2"), (0.01, "0"), (60.0, "2")):
            wanted = one[name](x, torch.tensor(t), label=label).x0
            torch.testing.assert_close(made(x, torch.tensor(t), label=label).x0, wanted)
        # Times of its own for every sample, as in training.
        mixed = made(x, torch.tensor([0.2, 5.0, 1.0]), label=label).x0
        for row, name in enumerate("021"):
            t = torch.tensor([0.2, 5.0, 1.0][row])
            torch.testing.assert_close(mixed[row], one[name](x, t, label=label).x0[row])
        # Half way in log(sigma) the layers' answers are the means: with the adapters equal, nothing changes.
        equal = copy.deepcopy(made)
        for a, b in zip(lora_parameters(equal, "1"), lora_parameters(equal, "2"), strict=True):
            b.copy_(a)
        middle = torch.tensor(5.0**0.5)
        torch.testing.assert_close(equal(x, middle, label=label).x0, one["1"](x, middle, label=label).x0)
        back = load_lora(model, save_lora(made, tmp_path / "timed.safetensors"))
        for t in (0.2, 0.5, 3.0):
            wanted = made(x, torch.tensor(t), label=label).x0
            assert torch.equal(back(x, torch.tensor(t), label=label).x0, wanted)
            assert torch.equal(copy.deepcopy(made)(x, torch.tensor(t), label=label).x0, wanted)
    with pytest.raises(ValueError, match="cannot be merged"):
        merge_lora(made)
    with pytest.raises(ValueError, match="differ in noise"):
        add_timed_lora(model, [1.0, 1.0])


def test_the_share_of_a_timed_adapter_is_linear_in_log_sigma():
    """One linear layer on a fixed input: its answer is affine in the share."""
    model = denoiser()
    made = add_timed_lora(model, (1.0, 4.0), 2, ["last"])
    for number, parameter in enumerate(lora_parameters(made)):
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
    seen: list[torch.Tensor] = []
    made.network.last.register_forward_hook(lambda module, arguments, answer: seen.append(answer))
    fixed = torch.randn(1, 8, 8, 4)
    made.network.last.register_forward_pre_hook(lambda module, arguments: (fixed,))
    with torch.no_grad():
        for t in (1.0, 2.0, 4.0):
            made(torch.zeros(1, *SHAPE), torch.tensor(t))
    torch.testing.assert_close(seen[1], (seen[0] + seen[2]) / 2)
    assert not torch.allclose(seen[0], seen[2])
