"""Claims of fewstep/hub/flux.py."""

from __future__ import annotations

from claims.claim import Claim, Outcome
from claims.pipelines import worst


def _same(kind: str, solver: str) -> Outcome:
    difference = worst(kind, solver)
    about = f"{kind} with random weights, two prompts, guidance 4, 5 steps of {solver}, float32; the largest difference"
    return Outcome(difference, 1e-4, "a tolerance", about)


CLAIMS = (
    Claim(
        "flux-pipeline",
        "ddim draws the pictures of Flux in diffusers, guidance included",
        lambda seed: _same("FluxPipeline", "ddim"),
        quick=False,
    ),
    Claim(
        "flux-pipeline",
        "dpmpp-2m draws the pictures of Flux in diffusers, guidance included",
        lambda seed: _same("FluxPipeline", "dpmpp-2m"),
        quick=False,
    ),
)
