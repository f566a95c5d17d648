"""Claims of fewstep/hub/pixart.py."""

from __future__ import annotations

from claims.parity import same_pictures

CLAIMS = (
    *same_pictures("pixart-pipeline", "PixArtAlphaPipeline"),
    *same_pictures("pixart-pipeline", "PixArtSigmaPipeline"),
)
