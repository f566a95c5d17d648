"""Claims of fewstep/hub/pipeline.py."""

from __future__ import annotations

import torch

from claims.common import Claim, Noise, Outcome, plan
from claims.pipelines import matching, reopened, tiny


def _fewer(seed: int) -> Outcome:
    """The scheduler that a folder came with, and another solver on the same model, by distance from 200 steps."""
    model = reopened(tiny("DDPMPipeline", matching("ddim", "DDPMPipeline")))
    noise = Noise(seed).normal(0, (8, *model.shape))
    exact, own, other = (
        plan(model.process, *how)(model, noise)
        for how in (("dpmpp-3m", 200), ("ddim", 10, model.timesteps), ("dpmpp-3m", 10))
    )
    ours, theirs = (float(torch.norm(x - exact)) / float(exact.norm()) for x in (other, own))
    about = "UNet2DModel with random weights, 10 evaluations, relative distance from the samples of 200"
    return Outcome(ours, theirs, "DDIM on the folder's own grid", about)


CLAIMS = (
    Claim("diffusers-pipeline", "dpmpp-3m is nearer to the exact samples than the DDIM it came with",
          _fewer, quick=False),
)  # fmt: skip
