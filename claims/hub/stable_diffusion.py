"""Claims of fewstep/hub/stable_diffusion.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.pipelines import worst


def _same(kind: str, solver: str) -> Outcome:
    difference = worst(kind, solver)
    about = f"{kind} with random weights, two prompts, guidance 4, 5 steps of {solver}, float32; the largest difference"
    return Outcome(difference, 1e-4, "a tolerance", about)


CLAIMS = (
    Claim(
        "stable-diffusion-pipeline",
        "ddim draws the pictures of StableDiffusion in diffusers, guidance included",
        lambda seed: _same("StableDiffusionPipeline", "ddim"),
        quick=False,
    ),
    Claim(
        "stable-diffusion-pipeline",
        "dpmpp-2m draws the pictures of StableDiffusion in diffusers, guidance included",
        lambda seed: _same("StableDiffusionPipeline", "dpmpp-2m"),
        quick=False,
    ),
    Claim(
        "stable-diffusion-xl-pipeline",
        "ddim draws the pictures of StableDiffusionXL in diffusers, guidance included",
        lambda seed: _same("StableDiffusionXLPipeline", "ddim"),
        quick=False,
    ),
    Claim(
        "stable-diffusion-xl-pipeline",
        "dpmpp-2m draws the pictures of StableDiffusionXL in diffusers, guidance included",
        lambda seed: _same("StableDiffusionXLPipeline", "dpmpp-2m"),
        quick=False,
    ),
)
