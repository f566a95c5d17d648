"""InstructPix2Pix ("instruct-pix2pix-pipeline") against diffusers itself."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs

pytest.importorskip("diffusers")
from claims.pipelines import matching  # noqa: E402
from claims.pipelines import tiny as make  # noqa: E402

KIND = "StableDiffusionInstructPix2PixPipeline"


def test_the_pictures_of_diffusers(tmp_path):
    pipeline = make(KIND, matching("ddim", KIND))
    pipeline.save_pretrained(tmp_path / "model")
    model = fs.load(tmp_path / "model")
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    made = fs.plan(model.process, "ddim", 4, model.timesteps)
    noise = fs.Noise(3).normal(0, (1, *model.shape))
    for scale in (1.0, 5.0):
        theirs = pipeline(
            "a cat",
            image=(picture / 2 + 0.5)[None],
            latents=noise * made.start[1],
            num_inference_steps=4,
            guidance_scale=scale,
            image_guidance_scale=1.0,
            output_type="pt",
        ).images
        ours = model.decode(made(fs.guide(model, "cfg", scale=scale), noise, text="a cat", picture=picture))
        torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"this model needs picture, a tensor \(3, 16, 16\)"):
        fs.sample(model, 1, text="a cat", steps=1)
    long = fs.load(tmp_path / "model", long_prompts=True).check_condition(
        {"text": " ".join(["a cat"] * 12), "picture": picture}, 1, torch.device("cpu")
    )
    assert long["text"].shape == (1, 32, 16)
