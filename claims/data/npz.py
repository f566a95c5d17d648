"""Claims of fewstep/data/npz.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from claims.claim import Claim, Outcome
from fewstep.data.open import open_data


def _memory(seed: int) -> Outcome:
    pictures = np.random.default_rng(seed).integers(0, 256, (500, 8, 8, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as root:
        np.savez(Path(root) / "pictures.npz", images=pictures)
        data = open_data(Path(root) / "pictures.npz", split="all")
    return Outcome(
        data.raw.element_size(),
        data.images.element_size(),
        "the pictures as floats",
        "500 colour pictures of 8x8 from bytes",
        unit="bytes a value in memory",
    )


CLAIMS = (Claim("npz", "pictures stay in memory as the bytes that they were", _memory),)
