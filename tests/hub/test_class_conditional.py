"""DiT ("dit-pipeline") against diffusers itself."""

from __future__ import annotations

import pytest
import torch

import fewstep as fs

pytest.importorskip("diffusers")
from claims.pipelines import matching  # noqa: E402


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m"])
def test_the_pictures_of_diffusers(solver, scale, tiny, monkeypatch):
    from diffusers.pipelines.dit import pipeline_dit

    pipeline, folder = tiny("DiTPipeline", matching(solver, "DiTPipeline"))
    model = fs.load(folder)
    assert model.shape == (4, 8, 8) and model.conditions["label"].classes == 1000
    made = fs.plan(model.process, solver, 5, model.timesteps)
    noise = fs.Noise(3).normal(0, (2, *model.shape))
    monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda **_: noise * made.start[1])
    theirs = pipeline([7, 999], guidance_scale=scale, num_inference_steps=5, output_type="pt").images
    ours = model.decode(made(fs.guide(model, "cfg", scale=scale), noise, label=[7, 999]))
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, rtol=0, atol=1e-4)


def test_the_learned_variance_is_left_aside_and_no_label_is_the_null_class(tiny):
    pipeline, folder = tiny("DiTPipeline", matching("ddim", "DiTPipeline"))
    model = fs.load(folder)
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor(300.0)
    named = model.check_condition({}, 2, x.device)
    with torch.no_grad():
        whole = pipeline.transformer(x, torch.tensor([300, 300]), torch.tensor([1000, 1000])).sample
        assert whole.shape == (2, 8, 8, 8)
        torch.testing.assert_close(model(x, t, **named).eps, whole[:, :4])
