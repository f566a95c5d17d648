"""Variants of weights, alone and in shards."""

from __future__ import annotations

import shutil

import pytest
import torch

import fewstep as fs
from fewstep.hub.weights import chosen_variant, variants, weight_files

pytest.importorskip("diffusers")
from claims.pipelines import matching  # noqa: E402

KIND = "StableDiffusion3Pipeline"


def test_names():
    names = ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json"]
    assert variants(names) == {""} and variants(["pytorch_model.bin", "merges.txt"]) == set()
    new, old = "diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "model-00001-of-00002.fp16.safetensors"
    assert variants([new]) == variants([old]) == {"fp16"}
    assert variants(["diffusion_pytorch_model.non_ema.safetensors", *names]) == {"", "non_ema"}
    assert len(weight_files("transformers", "fp16")) == 4


def test_which_is_chosen():
    plain, half, other = "model.safetensors", "model.fp16.safetensors", "model.bf16.safetensors"
    assert chosen_variant("unet", [plain, half]) is None
    assert chosen_variant("unet", [plain, half], "fp16") == "fp16"
    assert chosen_variant("unet", [plain, half], "bf16") is None  # in another component
    assert chosen_variant("unet", [half]) == "fp16"
    with pytest.raises(ValueError, match="unet has weights in the variants 'bf16' and 'fp16': give variant= one of"):
        chosen_variant("unet", [half, other])
    with pytest.raises(ValueError, match="unet has weights in the variants 'fp16', not 'bf16'"):
        chosen_variant("unet", [half], "bf16")
    with pytest.raises(ValueError, match="unet has no safetensors; model.bin is a pickle"):
        chosen_variant("unet", ["model.bin"])


@pytest.mark.parametrize("shards", ["10GB", "20KB"])
def test_a_folder_of_one_variant_opens_by_itself(shards, tiny, tmp_path):
    pipeline, folder = tiny(KIND, matching("ddim", KIND))
    pipeline.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size=shards)
    names = {path.name for path in (tmp_path / "half" / "transformer").iterdir()}
    assert len([name for name in names if name.endswith(".safetensors")]) > (shards == "20KB")
    for options in ({}, {"variant": "fp16"}):
        state = fs.load(tmp_path / "half", **options).state_dict()
        assert all(torch.equal(value, state[name]) for name, value in fs.load(folder).state_dict().items())
    with pytest.raises(ValueError, match="no weights of the variant 'bf16'; there are fp16: leave variant out"):
        fs.load(tmp_path / "half", variant="bf16")


def test_the_variant_where_there_is_one(tiny, tmp_path):
    """Beside the usual weights, in some of the components."""
    pipeline, folder = tiny("StableDiffusionPipeline", matching("ddim", "StableDiffusionPipeline"))
    shutil.copytree(folder, tmp_path / "both")
    with torch.no_grad():
        pipeline.unet.conv_in.bias.add_(1)
    pipeline.unet.save_pretrained(tmp_path / "both" / "unet", variant="fp16")
    usual, other = fs.load(tmp_path / "both"), fs.load(tmp_path / "both", variant="fp16")
    assert torch.equal(other.network.conv_in.bias, usual.network.conv_in.bias + 1)
    with pytest.raises(ValueError, match="has no weights of the variant 'fp16': leave variant out"):
        fs.load(folder, variant="fp16")
    with pytest.raises(ValueError, match="variant is for folders of diffusers pipelines"):
        fs.load("digits", variant="fp16")
