"""Pipelines whose networks were adapted, compiled or fused load again as they were."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch import nn

import fewstep as fs
from fewstep.hub.pipeline import PipelineDenoiser
from fewstep.hub.saving import plain

pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
from sampled import sampled  # noqa: E402

from claims.pipelines import matching  # noqa: E402
from claims.pipelines import tiny as make  # noqa: E402

TARGETS = {"StableDiffusionPipeline": ["to_q", "to_v", "conv1"], "StableDiffusion3Pipeline": ["to_q", "add_k_proj"]}


def lora(targets, **options):
    return peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, **options)


def made(kind="StableDiffusionPipeline"):
    return make(kind, matching("ddim", kind))


def drawn(model):
    return fs.sample(model, 1, text="a cat", steps=2, solver="ddim")


def adapter(pipeline, network, targets):
    network.add_adapter(lora(targets))
    peft.inject_adapter_in_model(lora(["q_proj"]), pipeline.text_encoder)


def several(pipeline, network, targets):
    network.add_adapter(lora(targets), "one")
    network.add_adapter(lora(targets[:1]), "two")
    network.set_adapters(["one", "two"], [0.5, -2.0])


def fused(pipeline, network, targets):
    network.add_adapter(lora(targets))
    pipeline.fuse_lora(lora_scale=0.5)


def switched_off(pipeline, network, targets):
    network.add_adapter(lora(targets))
    network.disable_adapters()


def projections(pipeline, network, targets):
    network.fuse_qkv_projections()
    with torch.no_grad():  # trained further, fused
        for module in network.modules():
            if hasattr(module, "to_qkv"):
                module.to_qkv.weight.mul_(1.1)


def wrapped(pipeline, network, targets):
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    setattr(pipeline, name, torch.compile(network, backend="eager"))


def inside(pipeline, network, targets):
    blocks = network.down_blocks if hasattr(network, "down_blocks") else network.transformer_blocks
    blocks[0] = torch.compile(blocks[0], backend="eager")


CHANGES = {one.__name__: one for one in (adapter, several, fused, switched_off, projections, wrapped, inside)}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@sampled("kind, change", list(TARGETS), list(CHANGES))
def test_it_loads_again_as_it_was(change, kind, tmp_path):
    pipeline = made(kind)
    torch.manual_seed(4)
    network = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    before = drawn(PipelineDenoiser(pipeline))
    CHANGES[change](pipeline, network, TARGETS[kind])
    model = PipelineDenoiser(pipeline)
    if change not in ("wrapped", "inside"):  # which change nothing, and would be compiled here
        changed = drawn(model)
        assert torch.equal(changed, before) == (change == "switched_off")
        before = changed
    names = list(model.state_dict())
    folder = fs.save(model, tmp_path / "model")
    torch.testing.assert_close(drawn(fs.load(folder)), before, rtol=0, atol=1e-5)
    assert list(model.state_dict()) == names  # the model stays as it was


def test_a_guided_pipeline_with_adapters(tmp_path):
    pipeline = made()
    pipeline.unet.add_adapter(lora(["to_q"]))
    guided = fs.guide(PipelineDenoiser(pipeline), "cfg", scale=3.0)
    again = fs.load(fs.save(guided, tmp_path / "model"))
    torch.testing.assert_close(drawn(again), drawn(guided), rtol=0, atol=1e-5)


def test_what_would_not_load_again_is_refused_and_leaves_nothing(tmp_path):
    pipeline = made()
    pipeline.unet.mid_block.register_parameter("extra", nn.Parameter(torch.ones(2)))
    with pytest.raises(ValueError, match="component unet cannot be saved: loading would not find .* mid_block.extra;"):
        fs.save(PipelineDenoiser(pipeline), tmp_path / "model")
    pipeline = made()
    pipeline.unet.conv_out = nn.Conv2d(8, 3, 3, padding=1)
    with pytest.raises(ValueError, match=r"loading expects conv_out.weight of shape \(4, 8, 3, 3\), which is of shape"):
        fs.save(PipelineDenoiser(pipeline), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_offloaded_weights_are_not_saved(tiny, tmp_path):
    pytest.importorskip("accelerate")
    _, folder = tiny("DDPMPipeline", matching("ddim", "DDPMPipeline"))
    with pytest.raises(ValueError, match="weights of the component unet are offloaded: load the model without offload"):
        fs.save(fs.load(folder, device="cpu", offload=True), tmp_path / "model")


def test_a_network_as_it_is_is_not_copied(tmp_path):
    pipeline = made()
    assert plain(pipeline.unet) is pipeline.unet
    fs.save(PipelineDenoiser(pipeline), tmp_path / "model")
    with safe_open(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert set(file.keys()) == set(pipeline.unet.state_dict())
