"""Claims of clips: what they are made of, and that what is held out stays so."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome, tolerance
from fewstep.data.moving import draw, held_out, scenes
from fewstep.metrics.motion import read

ROWS = 512


def _held(seed: int) -> Outcome:
    found = sum(held_out(spec) for spec in scenes(torch.arange(ROWS)).specs())
    other = sum(not held_out(spec) for spec in scenes(torch.arange(ROWS), "validation").specs())
    about = f"{ROWS} clips to train on and as many held out"
    return Outcome(found + other, 1, "demand", about, unit="clips of the other split's combinations")


def _places(seed: int) -> Outcome:
    rows = torch.arange(64)
    far = (read(draw(rows)[0]).centre - scenes(rows).centres()).norm(dim=2).max()
    return tolerance(float(far), 0.05, "64 clips of 8 frames, places read back from their pixels", "pixels")


CLAIMS = (
    Claim("moving", "no clip of one split shows a combination of the other", _held),
    Claim("moving", "things are where their exact paths have them", _places),
)  # fmt: skip
