"""Claims of fewstep/hub/autoencoder.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from claims.common import Claim, Outcome
from claims.pipelines import kl, seam
from fewstep.hub.autoencoder import Autoencoder

ROOT = Path(__file__).resolve().parents[2]


def _peak(side: int, tile: int | None) -> int:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from claims.pipelines import decoding_memory"
    code += f"; print(decoding_memory({side}, {tile}))"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def _memory(seed: int) -> Outcome:
    base, whole, tiled = _peak(128, None), _peak(1024, None), _peak(1024, 128)
    about = "decoding 1024 x 1024 pixels, peak memory of the process above that at 128 x 128, tiles of 128; small KL"
    return Outcome((tiled - base) / 1024, (whole - base) / 1024, "in one piece", about, unit="MiB")


def _seam(seed: int) -> Outcome:
    autoencoder = Autoencoder(kl())
    latents = torch.randn(1, autoencoder.channels, 80, 64, generator=torch.Generator().manual_seed(seed))
    plain = autoencoder.decode(latents)
    autoencoder.tile = 64
    across, inside = seam(autoencoder.decode(latents), plain, 64, 4)
    about = "what tiling adds to the step between neighbouring pixels, mean along a line; 160 x 128 pixels, tiles of 64"
    return Outcome(across, inside, "the largest elsewhere", about)


CLAIMS = (
    Claim("autoencoder", "tiles bound the memory of decoding a large picture", _memory, quick=False),
    Claim("autoencoder", "no step across the border of a tile is larger than those inside", _seam, quick=False),
)
