"""`fewstep sample` with diffusers folders: variants, adapters, long prompts, networks that read a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fewstep as fs
from fewstep.cli.common import read_adapters

diffusers = pytest.importorskip("diffusers")
from claims.pipelines import matching, tiny  # noqa: E402

KIND = "StableDiffusionPipeline"
LONG = " ".join(["a red cat on the mat"] * 4)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawn(path):
    with np.load(path) as file:
        return torch.from_numpy(file["images"]).movedim(-1, 1)


def test_what_is_loaded_and_read(fewstep, place):
    pytest.importorskip("peft")
    pipeline = tiny(KIND, matching("ddim", KIND))
    pipeline.save_pretrained("usual")
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(2)
    pipeline.unet.save_pretrained("usual/unet", variant="fp16")
    path, layer = next((p, m) for p, m in pipeline.unet.named_modules() if p.endswith("to_q"))
    sides = {"A": torch.ones(1, layer.in_features), "B": torch.ones(layer.out_features, 1)}
    save_file({f"unet.{path}.lora_{s}.weight": value for s, value in sides.items()}, "style.safetensors")
    options = ["--prompt", LONG, "-n", "1", "--steps", "2", "--device", "cpu"]
    further = ["--variant", "fp16", "--lora", "style.safetensors=0.5", "--long-prompts"]
    code, _, err = fewstep("sample", "usual", *options, *further, "--out", "x.npz")
    assert code == 0 and "cut off" not in err, err
    model = fs.load("usual", variant="fp16", lora={"style.safetensors": 0.5}, long_prompts=True)
    torch.testing.assert_close(drawn("x.npz"), fs.sample(model, 1, text=LONG, steps=2).clamp(-1, 1), rtol=0, atol=1e-3)
    with pytest.warns(UserWarning, match="is longer than the text encoder reads, and '.* on the mat' is cut off"):
        assert fewstep("sample", "usual", *options, "--out", "y.npz")[0] == 0
    assert float((drawn("x.npz").float() - drawn("y.npz").float()).abs().max()) > 1e-3


def test_adapters_as_they_are_given(place):
    (place / "a=b.safetensors").touch()
    assert read_adapters(["x.safetensors=0.5", "y", "a=b.safetensors"]) == {
        "x.safetensors": 0.5, "y": 1.0, "a=b.safetensors": 1.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="--lora takes FILE or FILE=WEIGHT, .* got 'x=high'"):
        read_adapters(["x=high"])


def test_a_network_that_reads_a_picture_and_a_mask(fewstep, fails, place):
    base = tiny(KIND, matching("ddim", KIND), in_channels=9)
    parts = {name: part for name, part in base.components.items() if name != "image_encoder"}
    diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False).save_pretrained("inpaint")
    grey = np.full((16, 16, 3), 51, np.uint8)
    Image.fromarray(grey).save("a.png")
    Image.fromarray(np.repeat(np.uint8([0, 255]), 8)[None].repeat(16, 0)).save("m.png")
    options = ["--prompt", "a cat", "-n", "2", "--steps", "2", "--device", "cpu", "--guidance", "3"]
    code, _, err = fewstep("sample", "inpaint", *options, "--init", "a.png", "--mask", "m.png", "--out", "x.npz")
    assert code == 0, err
    picture, mask = torch.full((3, 16, 16), 51 / 127.5 - 1), torch.zeros(1, 16, 16)
    mask[..., 8:] = 1
    guided = fs.guide(fs.load("inpaint"), "cfg", scale=3.0)
    expected = fs.sample(guided, 2, text="a cat", picture=picture, mask=mask, steps=2).clamp(-1, 1)
    torch.testing.assert_close(drawn("x.npz"), expected, rtol=0, atol=1e-3)
    assert "this model's network reads the picture itself: give --init and --mask" in fails(
        "sample", "inpaint", *options
    )
