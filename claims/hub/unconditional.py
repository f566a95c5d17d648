"""Claims of fewstep/hub/unconditional.py."""

from __future__ import annotations

import torch

from claims.common import Claim, Noise, Outcome, experiment, plan
from claims.pipelines import matching, reopened, tiny


@experiment
def _same(seed: int, solver: str) -> Outcome:
    pipeline, steps = tiny("DDPMPipeline", matching(solver, "DDPMPipeline")), 10
    model = reopened(pipeline)
    made = plan(model.process, solver, steps, model.timesteps)
    noise = Noise(seed).normal(0, (4, *model.shape))
    x, scheduler = noise * made.start[1], pipeline.scheduler
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    about = f"UNet2DModel with random weights, {steps} steps of {solver}, float32; the largest difference of a pixel"
    return Outcome(float((made(model, noise) - x).abs().max()), 1e-4, "a tolerance", about)


CLAIMS = tuple(
    Claim("unconditional-pipeline", f"{solver} draws the pictures of diffusers", _same(solver), quick=False)
    for solver in ("ddim", "dpmpp-2m")
)
