"""Inpainting networks ("inpainting-pipeline", "inpainting-xl-pipeline") against diffusers itself."""

from __future__ import annotations

import pytest
import torch
from sampled import sampled

import fewstep as fs

pytest.importorskip("diffusers")
from claims.pipelines import PROMPTS, matching  # noqa: E402
from claims.pipelines import tiny as make  # noqa: E402

KINDS = ["StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"]


def opened(kind, folder, channels=9, solver="ddim"):
    """The pipeline, and the model of its folder."""
    pipeline = make(kind, matching(solver, kind), in_channels=channels)
    pipeline.save_pretrained(folder)
    return pipeline, fs.load(folder)


@pytest.fixture
def picture():
    return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def mask():
    made = torch.zeros(1, 16, 16)
    made[:, 4:12, 6:] = 1.0
    made[:, 2, 2] = 0.7
    return made


@sampled("kind, solver", KINDS, ["ddim", "dpmpp-2m"])
def test_the_pictures_of_diffusers(kind, solver, picture, mask, tmp_path):
    pipeline, model = opened(kind, tmp_path / "model", solver=solver)
    assert model.shape == (4, 8, 8) and list(model.conditions)[-2:] == ["mask", "picture"]
    made = fs.plan(model.process, solver, 4, model.timesteps)
    noise = fs.Noise(3).normal(0, (2, *model.shape))
    told = {"text": PROMPTS, "picture": picture, "mask": mask}
    for scale in (1.0, 5.0):
        theirs = pipeline(
            PROMPTS,
            image=(picture / 2 + 0.5)[None],
            mask_image=mask[None],
            strength=1.0,
            height=16,
            width=16,
            latents=noise * made.start[1],
            num_inference_steps=4,
            guidance_scale=scale,
            output_type="pt",
        ).images
        guided = fs.guide(model, "cfg", scale=scale)
        ours = model.decode(made(guided, noise, **told)) / 2 + 0.5
        torch.testing.assert_close(ours.clamp(0, 1), theirs, rtol=0, atol=1e-4)
    other = made(model, noise, text=PROMPTS, picture=picture, mask=1 - mask)
    assert float((made(model, noise, **told) - other).abs().max()) > 1e-3


def test_the_conditions(picture, mask, tmp_path):
    _, model = opened("StableDiffusionInpaintPipeline", tmp_path / "model")
    cpu = torch.device("cpu")
    named = model.check_condition({"picture": picture, "mask": mask[0]}, 3, cpu)
    assert named["picture"].shape == (3, 4, 8, 8) and named["mask"].shape == (3, 1, 8, 8)
    assert named["mask"][0, 0].unique().tolist() == [0.0, 1.0]
    again = model.check_condition(named, 3, cpu)
    assert all(torch.equal(again[name], named[name]) for name in named)
    each = model.check_condition({"picture": torch.stack([picture, -picture]), "mask": mask}, 2, cpu)
    torch.testing.assert_close(each["picture"][0], named["picture"][0])
    wide = model.sized(16, 24)
    assert wide.check_condition({"picture": torch.zeros(3, 16, 24), "mask": torch.ones(16, 24)}, 1, cpu)["mask"].all()
    alone = fs.sample(model, 1, text="a cat", picture=picture, mask=mask, steps=2, seed=3, first=1)
    torch.testing.assert_close(
        fs.sample(model, 2, text="a cat", picture=picture, mask=mask, steps=2, seed=3)[1:], alone, rtol=0, atol=1e-5
    )
    for wrong, message in (
        ({}, r"this model needs mask, a tensor \(1, 16, 16\)"),
        ({"picture": picture}, r"this model needs mask, a tensor \(1, 16, 16\)"),
        ({"mask": mask}, r"this model needs picture, a tensor \(3, 16, 16\)"),
        ({"picture": picture[:, :8], "mask": mask}, r"picture must have shape \(3, 16, 16\) or .*, got \(3, 8, 16\)"),
        ({"picture": picture, "mask": mask * 255}, r"the mask must lie between 0 \(kept\) and 1 .*, got 0 to 255"),
    ):
        with pytest.raises(ValueError, match=message):
            model.check_condition(wrong, 1, cpu)


def test_a_network_on_latents_alone(picture, mask, tmp_path):
    """diffusers pastes for those, as `fs.guide(model, "known")` does."""
    _, model = opened("StableDiffusionInpaintPipeline", tmp_path / "model", 4)
    assert list(model.conditions) == ["text"] and fs.sample(model, 1, text="a cat", steps=1).shape == (1, 3, 16, 16)


def test_other_channels(tmp_path):
    with pytest.raises(ValueError, match="the unet takes 7 channels, and a StableDiffusionInpaintPipeline gives it 9"):
        opened("StableDiffusionInpaintPipeline", tmp_path / "model", 7)
