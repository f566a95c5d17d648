"""Claims of the reader of clips."""

from __future__ import annotations

import torch

from claims.claim import Claim, Outcome, compared, tolerance
from fewstep.data.moving import captions, draw
from fewstep.metrics.motion import motion

ROWS, NOISE = 64, 0.3


def _noisy(seed: int) -> Outcome:
    rows = torch.arange(ROWS)
    clips = draw(rows)[0]
    noise = NOISE * torch.randn(clips.shape, generator=torch.Generator().manual_seed(seed))
    wrong = 1 - motion(clips + noise, captions(rows)).value
    return tolerance(wrong, 0.02, f"{ROWS} clips under noise of {NOISE}", "share read wrong")


def _backwards(seed: int) -> Outcome:
    rows = torch.arange(ROWS)
    clips, words = draw(rows)[0], captions(rows)
    errors = [motion(each, words).velocity_error for each in (clips, clips.flip(1))]
    return compared(errors, "the same clips backwards", f"{ROWS} clips", unit="error of the velocity, pixels a frame")


CLAIMS = (
    Claim("motion", "reads 98 % of clips right under noise", _noisy),
    Claim("motion", "tells a clip from the same frames backwards", _backwards),
)  # fmt: skip
