"""Claims of fewstep/hub/class_conditional.py."""

from __future__ import annotations

import torch

from claims.common import Claim, Noise, Outcome, plan
from claims.pipelines import matching, reopened, tiny
from fewstep.guidance.guide import guide


def _same(seed: int) -> Outcome:
    """The pipeline takes no noise, so its loop is written out: guidance on the first half of the channels."""
    pipeline, steps, scale = tiny("DiTPipeline", matching("ddim", "DiTPipeline")), 5, 4.0
    model = reopened(pipeline)
    made = plan(model.process, "ddim", steps, model.timesteps)
    noise = Noise(seed).normal(0, (2, *model.shape))
    x, scheduler, labels = noise * made.start[1], pipeline.scheduler, torch.tensor([7, 999, 1000, 1000])
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            given, nothing = pipeline.transformer(torch.cat([x, x]), t.expand(4), labels).sample[:, :4].chunk(2)
            x = scheduler.step(nothing + scale * (given - nothing), t, x).prev_sample
    ours = made(guide(model, "cfg", scale=scale), noise, label=[7, 999])
    about = "DiT with random weights, 5 steps of ddim, guidance 4, float32; the largest difference of a latent"
    return Outcome(float((ours - x).abs().max()), 1e-4, "a tolerance", about)


CLAIMS = (Claim("dit-pipeline", "ddim draws what diffusers draws, guidance included", _same, quick=False),)
