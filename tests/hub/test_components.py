"""Diffusers folders part by part ("diffusers-folder"), and what is wrong with them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import fewstep as fs
from fewstep.hub.components import is_pipeline, open_pipeline

pytest.importorskip("diffusers")
from claims.pipelines import matching  # noqa: E402


@pytest.fixture(scope="module")
def whole(tiny):
    return tiny("StableDiffusionPipeline", matching("ddim", "StableDiffusionPipeline"))


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole[1], tmp_path / "model")


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def refused(folder, message):
    with pytest.raises(ValueError, match=message) as caught:
        fs.load(folder)
    assert "\n" not in str(caught.value)


def test_it_opens_as_diffusers_does(whole):
    pipeline, folder = whole
    assert is_pipeline(folder) and not is_pipeline(folder / "unet")
    opened = open_pipeline(folder)
    assert type(opened) is type(pipeline) and opened.safety_checker is None
    for name in ("unet", "vae", "text_encoder"):
        theirs, ours = getattr(pipeline, name).state_dict(), getattr(opened, name).state_dict()
        assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    assert opened.tokenizer("a cat").input_ids == pipeline.tokenizer("a cat").input_ids


def test_the_index(folder):
    edit(folder / "model_index.json", lambda index: index.update(_class_name="StableVideoDiffusionPipeline"))
    refused(folder, "unsupported pipeline class 'StableVideoDiffusionPipeline'; supported: Consistency.*, DDIMPipeline")
    (folder / "model_index.json").write_text("{")
    refused(folder, "model_index.json is not JSON")


def test_a_component_of_its_own_code(folder):
    edit(folder / "model_index.json", lambda index: index.update(unet=["my_unet", "MyUNet"]))
    (folder / "unet" / "my_unet.py").write_text("raise SystemExit('ran')")
    refused(folder, r"the component unet is code of its own \('my_unet'\), which is never run")


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component(name, folder):
    shutil.rmtree(folder / name)
    refused(folder, f"has no component {name}: the folder {name}/ is missing")


def test_a_component_that_the_index_does_not_name(folder):
    edit(folder / "model_index.json", lambda index: index.pop("vae"))
    refused(folder, "names no vae, which a StableDiffusionPipeline needs")
    edit(folder / "model_index.json", lambda index: index.update(vae=[None, None]))
    refused(folder, "the pipeline has no vae, which a StableDiffusionPipeline needs")


@pytest.mark.parametrize("name", ["unet", "text_encoder"])
def test_pickled_weights_are_not_loaded(name, folder):
    weights = next((folder / name).glob("*.safetensors"))
    tensors = load_file(weights)
    weights.unlink()
    torch.save(tensors, folder / name / "diffusion_pytorch_model.bin")
    refused(folder, rf"{name} has no safetensors; diffusion_pytorch_model.bin is a pickle, which is never loaded")


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_weights_of_another_network(name, folder):
    path = next((folder / name).glob("*.safetensors"))
    tensors = load_file(path)
    key = next(key for key in tensors if tensors[key].ndim == 2)
    save_file(tensors | {key: torch.zeros(3, 5)}, path, {"format": "pt"})
    refused(folder, name)
    save_file({other: value for other, value in tensors.items() if other != key}, path, {"format": "pt"})
    refused(folder, f"{name}: the weights do not fit the configuration: they lack")


def test_damaged_weights(folder):
    path = next((folder / "unet").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    refused(folder, "unet cannot be loaded")


def test_a_component_without_a_configuration(folder):
    (folder / "unet" / "config.json").unlink()
    refused(folder, "unet has no config.json")


def test_a_scheduler_that_is_not_known(folder):
    edit(folder / "model_index.json", lambda index: index.update(scheduler=["diffusers", "VQDiffusionScheduler"]))
    edit(folder / "scheduler" / "scheduler_config.json", lambda c: c.update(_class_name="VQDiffusionScheduler"))
    with pytest.raises(ValueError, match="scheduler"):
        fs.load(folder)
