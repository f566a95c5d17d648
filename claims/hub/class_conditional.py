"""Claims of fewstep/hub/class_conditional.py."""

from __future__ import annotations

import tempfile

import torch

from claims.claim import Claim, Outcome
from claims.pipelines import matching, tiny
from fewstep.core.noise import Noise
from fewstep.guidance.guide import guide
from fewstep.hub.models import load
from fewstep.sampling.build import plan


def _same(seed: int) -> Outcome:
    """The pipeline takes no noise, so its loop is written out: guidance on the first half of the channels."""
    pipeline, steps, scale = tiny("DiTPipeline", matching("ddim", "DiTPipeline")), 5, 4.0
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        model = load(folder)
    made = plan(model.process, "ddim", steps, model.timesteps)
    noise = Noise(seed).normal(0, (2, *model.shape))
    x, scheduler = noise * made.start[1], pipeline.scheduler
    scheduler.set_timesteps(steps)
    labels = torch.tensor([7, 999, 1000, 1000])
    with torch.no_grad():
        for t in scheduler.timesteps:
            given, nothing = pipeline.transformer(torch.cat([x, x]), t.expand(4), labels).sample[:, :4].chunk(2)
            x = scheduler.step(nothing + scale * (given - nothing), t, x).prev_sample
    ours = made(guide(model, "cfg", scale=scale), noise, label=[7, 999])
    about = "DiT with random weights, 5 steps of ddim, guidance 4, float32; the largest difference of a latent"
    return Outcome(float((ours - x).abs().max()), 1e-4, "a tolerance", about)


CLAIMS = (Claim("dit-pipeline", "ddim draws what diffusers draws, guidance included", _same, quick=False),)
