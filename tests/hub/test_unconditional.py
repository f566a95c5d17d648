"""Pipelines on UNet2DModel ("unconditional-pipeline") against diffusers itself."""

from __future__ import annotations

import pytest
import torch
from sampled import sampled

import fewstep as fs

pytest.importorskip("diffusers")
from claims.pipelines import matching, scheduler  # noqa: E402

CLOSE = {"rtol": 0, "atol": 1e-4}


def loop(pipeline, noise, steps, **options):
    """The pipeline's own loop from given noise (it takes none), in pixels."""
    made, x = pipeline.scheduler, noise
    made.set_timesteps(steps)
    with torch.no_grad():
        for t in made.timesteps:
            x = made.step(pipeline.unet(made.scale_model_input(x, t), t).sample, t, x, **options).prev_sample
    return x


@sampled("predicts, solver", ["epsilon", "sample", "v_prediction"], ["ddim", "dpmpp-2m"])
def test_the_pictures_of_diffusers(solver, predicts, tiny):
    pipeline, folder = tiny("DDPMPipeline", matching(solver, "DDPMPipeline", prediction_type=predicts))
    model = fs.load(folder)
    assert (model.kind, model.shape, model.autoencoder) == ("DDPMPipeline", (3, 8, 8), None)
    made = fs.plan(model.process, solver, 6, model.timesteps)
    noise = fs.Noise(3).normal(0, (2, *model.shape))
    torch.testing.assert_close(made(model, noise), loop(pipeline, noise * made.start[1], 6), **CLOSE)


def test_clipping_is_that_of_the_scheduler(tiny):
    """diffusers clips x0 and, with use_clipped_model_output, takes the noise that belongs to it."""
    own = matching("ddim", "DDIMPipeline", clip_sample=True, clip_sample_range=0.8)
    pipeline, folder = tiny("DDIMPipeline", own)
    model = fs.load(folder)
    made = fs.plan(model.process, "ddim", 6, model.timesteps)
    noise = fs.Noise(3).normal(0, (2, *model.shape))
    ours = made(model, noise)
    expected = loop(pipeline, noise * made.start[1], 6, use_clipped_model_output=True)
    torch.testing.assert_close(ours, expected, **CLOSE)
    answer = model(noise, torch.tensor(500.0))
    assert float(answer.x0.abs().max()) == pytest.approx(0.8)


def test_labels(tiny):
    pipeline, folder = tiny("DDPMPipeline", matching("ddim", "DDPMPipeline"), num_class_embeds=5)
    model = fs.load(folder)
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor(300.0)
    with torch.no_grad():
        expected = pipeline.unet(x, 300, class_labels=torch.tensor([4, 0])).sample
        named = model.check_condition({"label": [4, 0]}, 2, x.device)
        torch.testing.assert_close(model(x, t, **named).eps, expected)
    for label, message in ((None, "needs a label"), (5, "out of range"), (-1, "out of range")):
        with pytest.raises(ValueError, match=message):
            fs.sample(model, 2, label=label, steps=2)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_consistency_models(steps, clip, tiny, monkeypatch):
    import diffusers
    from diffusers.schedulers import scheduling_consistency_models as module

    own = diffusers.CMStochasticIterativeScheduler(sigma_min=0.004, sigma_max=20.0, clip_denoised=clip)
    pipeline, folder = tiny("ConsistencyModelPipeline", own, num_class_embeds=7)
    model = fs.load(folder)
    noise, draws = fs.Noise(3).normal(0, (2, *model.shape)), iter(range(1, 9))
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: fs.Noise(5).normal(next(draws), tuple(shape)))
    theirs = pipeline(2, class_labels=[1, 6], num_inference_steps=steps, latents=noise, output_type="pt").images
    made = fs.plan(model.process, "multistep-consistency", steps, model.timesteps)
    ours = made(model, noise, seed=5, label=[1, 6])
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, **CLOSE)
    assert model.plan.name == "multistep-consistency" and model.plan.nfe == 1


def test_edm_preconditioning(tiny):
    import diffusers

    for predicts in ("epsilon", "v_prediction"):
        own = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=40.0, prediction_type=predicts)
        pipeline, folder = tiny("DDPMPipeline", own)
        model = fs.load(folder)
        made = fs.plan(model.process, "ddim", 6, model.timesteps)
        noise = fs.Noise(3).normal(0, (2, *model.shape))
        torch.testing.assert_close(made(model, noise), loop(pipeline, noise * 40.0, 6), **CLOSE)


def test_euler_is_the_same_process(tiny):
    """Its state is x / alpha, and its grid is that of noise levels: a step is DDIM's."""
    own = scheduler("EulerDiscreteScheduler", timestep_spacing="leading", steps_offset=1)
    pipeline, folder = tiny("DDPMPipeline", own)
    model = fs.load(folder)
    made = fs.plan(model.process, "ddim", 6, model.timesteps)
    noise = fs.Noise(3).normal(0, (2, *model.shape))
    expected = loop(pipeline, noise * made.start[1] / made.start[0], 6)
    torch.testing.assert_close(made(model, noise), expected, **CLOSE)
