"""Claims of fewstep/hub/flux.py."""

from __future__ import annotations

from claims.parity import same_pictures

CLAIMS = same_pictures("flux-pipeline", "FluxPipeline")
