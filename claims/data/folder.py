"""Claims of fewstep/data/folder.py."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np

from claims.claim import Claim, Outcome
from fewstep.data.open import open_data
from fewstep.data.spec import split_rows

PICTURES = 60


def _stays(seed: int) -> Outcome:
    """Picture k is grey k; then the first picture trained on is damaged."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as root:
        for number in range(PICTURES):
            Image.fromarray(np.full((4, 4), 4 * number, np.uint8)).save(Path(root) / f"{number:02}.png")

        def numbers(split: str) -> set[int]:
            data = open_data(root, split=split, mode="L", validation=0.2, seed=seed)
            return {int(value) // 4 for value in data.raw[:, 0, 0, 0]}

        held, broken = numbers("validation"), min(numbers("train"))
        (Path(root) / f"{broken:02}.png").write_bytes(b"broken")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = held & numbers("train")
    left = np.array([number for number in range(PICTURES) if number != broken])
    theirs = held & set(left[split_rows(len(left), "train", 0.2, seed)].tolist())
    return Outcome(
        len(ours),
        len(theirs),
        "a split of the pictures that can be read",
        f"{PICTURES} pictures, a fifth held out, one of the others damaged afterwards",
        unit="pictures held out before and trained on now",
    )


CLAIMS = (Claim("folder", "what is held out stays held out when a picture is damaged", _stays),)
