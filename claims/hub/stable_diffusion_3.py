"""Claims of fewstep/hub/stable_diffusion_3.py."""

from __future__ import annotations

from claims.parity import same_pictures

CLAIMS = same_pictures("stable-diffusion-3-pipeline", "StableDiffusion3Pipeline")
