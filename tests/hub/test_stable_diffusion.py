"""Stable Diffusion 1, 2 and XL against diffusers itself."""

from __future__ import annotations

import pytest
import torch
from sampled import sampled

import fewstep as fs

pytest.importorskip("diffusers")
from claims.pipelines import PROMPTS, both, matching  # noqa: E402

CLOSE = {"rtol": 0, "atol": 1e-4}


@sampled("kind, solver", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"], ["ddim", "dpmpp-2m"])
def test_the_pictures_of_diffusers(solver, kind, tiny):
    pipeline, folder = tiny(kind, matching(solver, kind))
    ours, theirs = both(pipeline, folder, solver, 5, size=(16, 24))
    torch.testing.assert_close(ours, theirs, **CLOSE)
    guided, expected = both(pipeline, folder, solver, 5, 6.0, size=(16, 24))
    torch.testing.assert_close(guided, expected, **CLOSE)
    assert float((guided - ours).abs().max()) > 0.01  # the comparison would see a wrong guidance


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m"])
def test_v_prediction_with_zero_terminal_snr(solver, tiny):
    """Stable Diffusion 2's prediction, on betas rescaled once, from pure noise on."""
    zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipeline, folder = tiny("StableDiffusionPipeline", matching(solver, "StableDiffusionPipeline", **zero))
    model = fs.load(folder)
    assert model.predicts == "v" and model.process.alpha(999.0) < 3e-4
    ours, theirs = both(pipeline, folder, solver, 5, 3.0)
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_the_last_step_at_the_smallest_noise(tiny):
    """dpmpp-2m ends there at second order, as diffusers does without lower_order_final."""
    own = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
    pipeline, folder = tiny("StableDiffusionPipeline", matching("dpmpp-2m", "StableDiffusionPipeline", **own))
    assert fs.load(folder).timesteps(fs.load(folder).process, 5)[-1] == 0.0
    ours, theirs = both(pipeline, folder, "dpmpp-2m", 5)
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_a_negative_prompt(kind, tiny):
    pipeline, folder = tiny(kind, matching("ddim", kind))
    model = fs.load(folder)
    made = fs.plan(model.process, "ddim", 4, model.timesteps)
    noise = fs.Noise(3).normal(0, (2, *model.shape))
    theirs = pipeline(
        PROMPTS,
        negative_prompt=["blurry"] * 2,
        latents=noise * made.start[1],
        num_inference_steps=4,
        guidance_scale=5.0,
        output_type="pt",
    ).images
    guided = fs.guide(model, "cfg", scale=5.0, negative="blurry")
    ours = model.decode(made(guided, noise, text=PROMPTS))
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, **CLOSE)


def test_no_prompt_is_zeros_for_xl_and_an_empty_prompt_is_not(tiny):
    _, folder = tiny("StableDiffusionXLPipeline", matching("ddim", "StableDiffusionXLPipeline"))
    model = fs.load(folder)
    nothing = model.check_condition({}, 3, model.device)
    assert nothing["text"].shape == (3, 16, 28) and nothing["pooled"].shape == (3, 12)
    assert not nothing["text"].any() and not nothing["pooled"].any()
    assert model.check_condition({"text": ""}, 3, model.device)["pooled"].abs().min() > 0
    _, folder = tiny("StableDiffusionPipeline", matching("ddim", "StableDiffusionPipeline"))
    model = fs.load(folder)
    torch.testing.assert_close(
        model.check_condition({}, 1, model.device), model.check_condition({"text": ""}, 1, model.device)
    )


def test_distilled_guidance_is_a_condition(tiny):
    pipeline, folder = tiny(
        "StableDiffusionPipeline", matching("ddim", "StableDiffusionPipeline"), time_cond_proj_dim=6
    )
    model = fs.load(folder)
    made = fs.plan(model.process, "ddim", 4, model.timesteps)
    noise = fs.Noise(3).normal(0, (2, *model.shape))
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt"}
    theirs = pipeline(PROMPTS, latents=noise * made.start[1], **options).images
    ours = model.decode(made(model, noise, text=PROMPTS, guidance=3.0))
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, **CLOSE)
