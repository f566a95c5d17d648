"""Parts of networks, ours and diffusers': at the input at which they were kept, what stands is what would have run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fewstep as fs
from fewstep.caching.parts import cut, each, rest, units
from fewstep.core.denoiser import Denoiser
from fewstep.denoisers.operations import operations
from fewstep.networks.blocks import blocks_of
from fewstep.networks.dit import DiT
from fewstep.networks.surgery import replaced
from fewstep.networks.unet import UNet
from fewstep.processes.vp import VP

F64 = torch.float64


def shaken(network: nn.Module) -> nn.Module:
    """Weights moved off their zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.double().eval()


def diffusers_network(name: str) -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    stages: dict[str, Any] = {"block_out_channels": (8, 8, 16), "layers_per_block": 2, "norm_num_groups": 4}
    if name == "UNet2DModel":
        downs, ups = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
        made = diffusers.UNet2DModel(8, 2, 2, down_block_types=downs, up_block_types=ups, **stages)
    elif name == "UNet2DConditionModel":
        kinds = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D")}
        kinds |= {"up_block_types": ("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")}
        made = diffusers.UNet2DConditionModel(8, 2, 2, cross_attention_dim=6, attention_head_dim=4, **stages, **kinds)
    else:
        made = diffusers.DiTTransformer2DModel(
            2, 4, 2, 2, num_layers=3, sample_size=8, patch_size=2, norm_num_groups=2, num_embeds_ada_norm=5
        )
    return shaken(made)


class Foreign(nn.Module):
    """A network of diffusers', called with a state and a time alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        named: dict[str, Any] = {}
        if type(self.network).__name__ == "UNet2DConditionModel":
            named["encoder_hidden_states"] = torch.linspace(-1, 1, 18, dtype=x.dtype).view(1, 3, 6).expand(len(x), 3, 6)
        if type(self.network).__name__ == "DiTTransformer2DModel":
            named["class_labels"] = torch.arange(len(x)) % 5
        answer: Tensor = self.network(x, 1000 * t, **named).sample
        return answer


def wrapped(network: nn.Module) -> Denoiser:
    return fs.wrap(network, VP(), "eps", (2, 8, 8))


MODELS = {
    "unet": lambda: wrapped(shaken(UNet(2, 8, (8, 8, 16), 2, (2, 4), None))),
    "dit": lambda: wrapped(shaken(DiT(2, 8, width=8, depth=3, classes=None))),
    **{name: lambda name=name: wrapped(Foreign(diffusers_network(name)))
       for name in ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")},
}  # fmt: skip
UNETS = [name for name in MODELS if "unet" in name.lower()]


@pytest.fixture(scope="module", params=MODELS)
def model(request: Any) -> Denoiser:
    return MODELS[request.param]()


def states() -> tuple[Tensor, Tensor]:
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=F64)
    return x, torch.tensor([0.2, 0.5, 0.9], dtype=F64)


def parts_of(model: Denoiser) -> list[Any]:
    levels = sorted({block.level for block in blocks_of(model).values()})
    whole = [cut(model, level) for level in levels if level] if len(levels) > 1 else [rest(model), rest(model, 1, 1)]
    # Not the first: diffusers' DiT reads the class once more through it.
    return [*whole, *list(each(model).values())[1:4]]


def test_what_stands_is_what_was_kept(model):
    x, t = states()
    with torch.no_grad():
        answer = model(x, t).value
        for part in parts_of(model):
            store: dict[str, Tensor] = {}
            assert torch.equal(replaced(model, part.keeping(model, store))(x, t).value, answer)
            assert set(store) == set(part.keys)
            stands = replaced(model, part.standing(model, store))
            found = stands(x, t).value
            # A value comes back as it was; input and what was added to it are rounded once more.
            torch.testing.assert_close(found, answer, rtol=0, atol=1e-12 if part.residual else 0)
            store[part.name] = store[part.name] + 1.0
            assert not torch.equal(stands(x, t).value, answer)


def test_what_stands_does_not_run(model):
    """Counted by operations, and by the weights: those of a part can be anything, not a number even."""
    x, t = states()
    with torch.no_grad():
        for part in parts_of(model):
            store: dict[str, Tensor] = {}
            replaced(model, part.keeping(model, store))(x, t)
            stands = replaced(model, part.standing(model, store))
            inside = {id(p) for block in part.blocks for p in model.get_submodule(block.path).parameters()}
            kept = [(p, p.clone()) for p in model.parameters() if id(p) in inside]
            wanted = stands(x, t).value
            for parameter, _ in kept:
                parameter.fill_(torch.nan)
            assert torch.equal(stands(x, t).value, wanted)
            for parameter, before in kept:
                parameter.copy_(before)
            store |= {name: value[:1] for name, value in store.items()}
            assert operations(stands) < operations(model)


@pytest.mark.parametrize("name", UNETS)
def test_a_cut_leaves_the_finer_levels_alone(name):
    model = MODELS[name]()
    blocks, part = blocks_of(model), cut(model, 1)
    inside = [block.path for block in part.blocks]
    left = {
        block.level for block in blocks.values() if not any(f"{block.path}.".startswith(f"{path}.") for path in inside)
    }
    assert left == {0}
    # What is kept is of the level above: it has come up already.
    store: dict[str, Tensor] = {}
    with torch.no_grad():
        replaced(model, part.keeping(model, store))(*states())
    assert store[part.name].shape[2:] == (8, 8)


def test_units_of_a_transformer():
    ours = units(blocks_of(MODELS["dit"]()))
    assert ours == [[f"block.{i}.attn", f"block.{i}.mlp"] for i in range(3)]
    assert [len(unit) for unit in units(blocks_of(MODELS["DiTTransformer2DModel"]()))] == [1, 1, 1]
    part = rest(MODELS["dit"](), 1, 1)
    assert [block.path for block in part.blocks] == ["network.block.1.attn", "network.block.1.mlp"]


def test_joint_blocks_keep_the_words_too():
    diffusers = pytest.importorskip("diffusers")
    network = shaken(
        diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=6, pooled_projection_dim=5, axes_dims_rope=(2, 2, 4),
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    named = {
        "hidden_states": torch.randn(2, 6, 4, generator=generator, dtype=F64),
        "encoder_hidden_states": torch.randn(2, 3, 6, generator=generator, dtype=F64),
        "pooled_projections": torch.randn(2, 5, generator=generator, dtype=F64),
        "timestep": torch.tensor([0.3, 0.7], dtype=F64),
        "img_ids": torch.zeros(6, 3, dtype=F64),
        "txt_ids": torch.zeros(3, 3, dtype=F64),
    }
    part = rest(network, 1, 1)
    assert part.keys == (part.name, f"{part.name} words") and len(part.blocks) == 2
    store: dict[str, Tensor] = {}
    with torch.no_grad():
        whole = network(**named).sample
        assert torch.equal(replaced(network, part.keeping(network, store))(**named).sample, whole)
        stands = replaced(network, part.standing(network, store))
        torch.testing.assert_close(stands(**named).sample, whole, rtol=0, atol=1e-12)
        store[part.keys[1]] = store[part.keys[1]].flip(1)
        assert not torch.allclose(stands(**named).sample, whole)


def test_bad_input():
    unet, dit = MODELS["unet"](), MODELS["dit"]()
    with pytest.raises(ValueError, match=r"a level 5 below its first; it has \[1, 2\]"):
        cut(unet, 5)
    with pytest.raises(ValueError, match="needs a UNet, whose blocks lie on a way down and a way up"):
        cut(dit, 1)
    with pytest.raises(ValueError, match="needs a transformer.*a UNet has 'deepcache'"):
        rest(unet)
    with pytest.raises(ValueError, match="at least one of the 3 blocks, got 2 and 1"):
        rest(dit, 2, 1)
    with pytest.raises(ValueError, match="unknown block 'block.9.attn'"):
        each(dit, ["block.9.attn"])
    with pytest.raises(ValueError, match="no network in this model names its blocks"):
        cut(fs.wrap(lambda x, t: x, VP(), "eps", (2, 8, 8)), 1)
