"""Claims of fewstep/hub/stable_diffusion.py."""

from __future__ import annotations

from claims.parity import same_pictures

CLAIMS = (
    *same_pictures("stable-diffusion-pipeline", "StableDiffusionPipeline"),
    *same_pictures("stable-diffusion-xl-pipeline", "StableDiffusionXLPipeline"),
)
