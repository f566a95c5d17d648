"""Claims of fewstep/hub/unconditional.py."""

from __future__ import annotations

import tempfile

import torch

from claims.claim import Claim, Outcome
from claims.pipelines import matching, tiny
from fewstep.core.noise import Noise
from fewstep.hub.models import load
from fewstep.sampling.build import plan


def _same(solver: str, seed: int) -> Outcome:
    pipeline, steps = tiny("DDPMPipeline", matching(solver, "DDPMPipeline")), 10
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        model = load(folder)
    made = plan(model.process, solver, steps, model.timesteps)
    noise = Noise(seed).normal(0, (4, *model.shape))
    x, scheduler = noise * made.start[1], pipeline.scheduler
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    about = f"UNet2DModel with random weights, {steps} steps of {solver}, float32; the largest difference of a pixel"
    return Outcome(float((made(model, noise) - x).abs().max()), 1e-4, "a tolerance", about)


CLAIMS = (
    Claim(
        "unconditional-pipeline", "ddim draws the pictures of diffusers", lambda seed: _same("ddim", seed), quick=False
    ),
    Claim(
        "unconditional-pipeline",
        "dpmpp-2m draws the pictures of diffusers",
        lambda seed: _same("dpmpp-2m", seed),
        quick=False,
    ),
)
