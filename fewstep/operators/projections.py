"""Projections by parallel beams, as computed tomography measures them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.operators.sparse import SparseOperator

METHODS = (
    Method(
        "projections",
        paper="Principles of Computerized Tomographic Imaging (Kak and Slaney, 1988)",
        claim="sums of a picture along parallel beams at given angles, with the exact adjoint",
        use="Projections",
    ),
)


class Projections(SparseOperator):
    """`y` `(C, angles, detectors)` of pictures `(C, H, W)`: line integrals, in pixels, of beams a pixel apart.

    Each pixel is shared between the two detectors nearest to the projection of its middle, so that every view sums to
    the picture's sum. Where no beam meets a pixel, y is 0.

    angles: how many, from 0 towards 180 degrees at equal distances, or these in degrees. At 0 the beams run along
    columns, and y is the sums of columns.
    """

    def __init__(self, angles: int | Sequence[float]):
        super().__init__()
        if isinstance(angles, int):
            if isinstance(angles, bool) or angles < 1:
                raise ValueError(f"projections take at least one angle, got {angles}")
            self.angles: tuple[float, ...] = tuple(180 * number / angles for number in range(angles))
        else:
            self.angles = tuple(float(angle) for angle in angles)
            if not self.angles or not all(map(math.isfinite, self.angles)):
                raise ValueError(f"projections take at least one angle in degrees, got {list(angles)}")
        self.given = angles if isinstance(angles, int) else list(self.angles)

    def config(self) -> dict[str, Any]:
        return {"angles": self.given}

    def entries(self, size: tuple[int, ...]) -> tuple[tuple[int, ...], Tensor, Tensor]:
        if len(size) != 2:
            raise ValueError(f"projections are of pictures (C, H, W), not of sizes {size}: take a volume's slices")
        height, width = size
        detectors = 2 * math.ceil(math.hypot(height - 1, width - 1) / 2) + 1
        turns = torch.deg2rad(torch.tensor(self.angles, dtype=torch.float64))[:, None, None]
        across = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
        down = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
        # The last bits of a cosine do not move a pixel that lies on a detector off it.
        place = (across * turns.cos() + down * turns.sin()).flatten(1) + (detectors - 1) / 2
        place = (place * 2**30).round() / 2**30
        first = place.floor()
        share = place - first
        view = torch.arange(len(self.angles))[:, None] * detectors
        pixel = torch.arange(height * width).expand(len(self.angles), -1)
        rows = torch.stack((view + first.long(), view + (first.long() + 1).clamp_max(detectors - 1)))
        places = torch.stack((rows.flatten(), pixel.expand(2, -1, -1).flatten()))
        weights = torch.stack((1 - share, share)).flatten()
        some = weights > 0
        return (len(self.angles), detectors), places[:, some], weights[some]
