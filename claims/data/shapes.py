"""Claims of fewstep/data/shapes.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome
from fewstep.data.shapes import held_out, scenes

ROWS = 1000


def _held(seed: int) -> Outcome:
    shares = [
        sum(held_out(spec) for spec in scenes(torch.arange(seed * ROWS, (seed + 1) * ROWS), split)) / ROWS
        for split in ("train", "validation")
    ]
    return Outcome(
        shares[0],
        shares[1],
        "the validation split",
        f"{ROWS} rows of each split",
        unit="share of pictures with a combination that is held out",
    )


CLAIMS = (Claim("shapes", "no training picture shows a combination that is held out", _held),)
