"""A whole Stable Diffusion in one file, and a pipeline object as a model."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file

import fewstep as fs

pytest.importorskip("diffusers")
from claims.pipelines import matching  # noqa: E402

KIND = "StableDiffusionPipeline"
INNER = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
         "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip


def unet_name(key):
    """The name of a parameter in the original code, of a UNet with one layer a block."""
    for ours, theirs in (
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("conv_in", "input_blocks.0.0"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
        ("mid_block.resnets.0", "middle_block.0"),
        ("mid_block.attentions.0", "middle_block.1"),
        ("mid_block.resnets.1", "middle_block.2"),
    ):
        if key.startswith(f"{ours}."):
            key = theirs + key[len(ours) :]
    key = re.sub(r"^down_blocks\.(\d)\.resnets\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.0", key)
    key = re.sub(r"^down_blocks\.(\d)\.attentions\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.1", key)
    key = re.sub(r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{2 + 2 * int(m[1])}.0.op", key)
    key = re.sub(r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0", key)
    key = re.sub(r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1", key)
    key = re.sub(r"^up_blocks\.0\.upsamplers\.0", "output_blocks.1.2", key)  # after an attention
    for ours, theirs in INNER.items():
        key = re.sub(rf"^((?:in|out)put_blocks\.\d\.0|middle_block\.[02])\.{ours}\.", rf"\1.{theirs}.", key)
    return f"model.diffusion_model.{key}"


def autoencoder_name(key):
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{1 - int(m[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample", key)
    for ours, theirs in {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        key = key.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    return f"first_stage_model.{key.replace('conv_shortcut', 'nin_shortcut')}"


@pytest.fixture(scope="module")
def original(tiny, tmp_path_factory):
    """The pipeline, its folder, and its file in the names of the original code."""
    pipeline, folder = tiny(KIND, matching("ddim", KIND))
    state = {unet_name(key): value for key, value in pipeline.unet.state_dict().items()}
    for key, value in pipeline.vae.state_dict().items():
        attention = re.search(r"attentions.*\.to_\w+(\.0)?\.weight$", key)
        state[autoencoder_name(key)] = value[:, :, None, None] if attention else value
    for key, value in pipeline.text_encoder.state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return pipeline, folder, path


def test_it_is_the_pipeline_that_it_was(original):
    pipeline, folder, path = original
    model, expected = fs.load(path, config=folder), fs.load(folder)
    for name in ("unet", "vae", "text_encoder"):
        theirs, ours = (getattr(p, name).state_dict() for p in (expected.pipeline, model.pipeline))
        assert list(theirs) == list(ours) and all(torch.equal(theirs[key], ours[key]) for key in theirs), name
    options = {"text": "a cat", "steps": 2}
    torch.testing.assert_close(fs.sample(model, 1, **options), fs.sample(expected, 1, **options))
    assert fs.load(str(path), config=str(folder), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_what_cannot_be_had_or_does_not_fit(original, tiny, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    _, folder, path = original
    _, other = tiny(KIND, matching("ddim", KIND), layers_per_block=2)
    _, pixels = tiny("DDPMPipeline", matching("ddim", "DDPMPipeline"))
    (tmp_path / "old.ckpt").write_bytes(b"PK")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors here")
    named = "configuration 'stable-diffusion-v1-5/stable-diffusion-v1-5' that it needs cannot be had: give config= a"
    for given, options, message in (
        (path, {}, named),
        (path, {"config": "some/where"}, "configuration 'some/where' that it needs cannot be had"),
        (path, {"config": other}, "tiny.safetensors (cannot be read as|does not fit)"),
        (path, {"config": pixels}, "diffusers does not read a DDPMPipeline from a single file"),
        (tmp_path / "old.ckpt", {}, "old.ckpt is a pickle, which can run code and is never loaded"),
        (tmp_path / "bad.safetensors", {}, "bad.safetensors is not safetensors"),
        (path, {"config": folder, "variant": "fp16"}, "variant is for folders of diffusers .* is a single file"),
        (folder, {"config": folder}, "config is for single files, and .* is a folder"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            fs.load(given, **options)
        assert "\n" not in str(caught.value)


def test_the_usual_configuration_from_the_cache(original, tmp_path, monkeypatch):
    import shutil

    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    snapshot = shutil.copytree(original[1], repository / "snapshots" / ("0" * 40))
    for weights in snapshot.rglob("*.safetensors"):
        weights.unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert fs.load(original[2]).shape == (4, 8, 8)


def test_a_pipeline_object_is_used_as_it_is(original):
    pipeline, folder, _ = original
    model = fs.load(pipeline, device="cpu")
    assert model.pipeline is pipeline and model.network is pipeline.unet
    options = {"text": "a cat", "steps": 2}
    assert torch.equal(fs.sample(model, 1, **options), fs.sample(fs.load(folder), 1, **options))
    assert fs.load(pipeline, size=32, long_prompts=True).shape == (4, 16, 16)
    with pytest.raises(ValueError, match="variant is for folders of diffusers pipelines, and this is one already"):
        fs.load(pipeline, variant="fp16")
    with pytest.raises(ValueError, match="name must be a text, a path or a diffusers pipeline, got 3"):
        fs.load(3)
