"""Claims of fewstep/hub/stable_diffusion_3.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.pipelines import worst


def _same(kind: str, solver: str) -> Outcome:
    difference = worst(kind, solver)
    about = f"{kind} with random weights, two prompts, guidance 4, 5 steps of {solver}, float32; the largest difference"
    return Outcome(difference, 1e-4, "a tolerance", about)


CLAIMS = (
    Claim(
        "stable-diffusion-3-pipeline",
        "ddim draws the pictures of StableDiffusion3 in diffusers, guidance included",
        lambda seed: _same("StableDiffusion3Pipeline", "ddim"),
        quick=False,
    ),
    Claim(
        "stable-diffusion-3-pipeline",
        "dpmpp-2m draws the pictures of StableDiffusion3 in diffusers, guidance included",
        lambda seed: _same("StableDiffusion3Pipeline", "dpmpp-2m"),
        quick=False,
    ),
)
