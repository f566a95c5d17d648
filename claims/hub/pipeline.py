"""Claims of fewstep/hub/pipeline.py."""

from __future__ import annotations

import tempfile

import torch

from claims.claim import Claim, Outcome
from claims.pipelines import matching, tiny
from fewstep.core.noise import Noise
from fewstep.hub.models import load
from fewstep.sampling.build import plan


def _fewer(seed: int) -> Outcome:
    """The scheduler that a folder came with, and another solver on the same model, by distance from 200 steps."""
    pipeline = tiny("DDPMPipeline", matching("ddim", "DDPMPipeline"))
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        model = load(folder)
    noise = Noise(seed).normal(0, (8, *model.shape))
    exact = plan(model.process, "dpmpp-3m", 200)(model, noise)
    own = plan(model.process, "ddim", 10, model.timesteps)(model, noise)
    other = plan(model.process, "dpmpp-3m", 10)(model, noise)
    norm = float(exact.norm())
    ours, theirs = (float(torch.norm(x - exact)) / norm for x in (other, own))
    about = "UNet2DModel with random weights, 10 evaluations, relative distance from the samples of 200"
    return Outcome(ours, theirs, "DDIM on the folder's own grid", about)


CLAIMS = (
    Claim(
        "diffusers-pipeline", "dpmpp-3m is nearer to the exact samples than the DDIM it came with", _fewer, quick=False
    ),
)
