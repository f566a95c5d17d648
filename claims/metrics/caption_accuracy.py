"""Claims of fewstep/metrics/caption_accuracy.py."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome
from fewstep.data.shapes import captions, draw
from fewstep.metrics.caption_accuracy import caption_accuracy

N = 60


def _others(seed: int) -> Outcome:
    rows = torch.arange(seed * N, (seed + 1) * N)
    pictures, asked = draw(rows, "validation")[0], captions(rows, "validation")
    return Outcome(
        caption_accuracy(pictures, asked).value,
        caption_accuracy(pictures, asked[1:] + asked[:1]).value,
        "each picture read against the next one's caption",
        f"{N} held-out pictures",
        better="high",
        unit="share that shows what was asked",
    )


CLAIMS = (Claim("captions", "tells pictures of what was asked for from those of something else", _others),)
