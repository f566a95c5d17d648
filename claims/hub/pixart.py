"""Claims of fewstep/hub/pixart.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.pipelines import worst


def _same(kind: str, solver: str) -> Outcome:
    difference = worst(kind, solver)
    about = f"{kind} with random weights, two prompts, guidance 4, 5 steps of {solver}, float32; the largest difference"
    return Outcome(difference, 1e-4, "a tolerance", about)


CLAIMS = (
    Claim(
        "pixart-pipeline",
        "ddim draws the pictures of PixArtAlpha in diffusers, guidance included",
        lambda seed: _same("PixArtAlphaPipeline", "ddim"),
        quick=False,
    ),
    Claim(
        "pixart-pipeline",
        "dpmpp-2m draws the pictures of PixArtAlpha in diffusers, guidance included",
        lambda seed: _same("PixArtAlphaPipeline", "dpmpp-2m"),
        quick=False,
    ),
    Claim(
        "pixart-pipeline",
        "ddim draws the pictures of PixArtSigma in diffusers, guidance included",
        lambda seed: _same("PixArtSigmaPipeline", "ddim"),
        quick=False,
    ),
    Claim(
        "pixart-pipeline",
        "dpmpp-2m draws the pictures of PixArtSigma in diffusers, guidance included",
        lambda seed: _same("PixArtSigmaPipeline", "dpmpp-2m"),
        quick=False,
    ),
)
