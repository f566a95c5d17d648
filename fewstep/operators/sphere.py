"""Views of a sphere: from an equirectangular picture to planes that touch it, and back."""

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
        "tangents",
        paper="OmniSSR: Zero-shot Omnidirectional Image Super-Resolution (Li et al., 2024)",
        arxiv="2404.10312",
        claim="planes that touch a sphere, from its equirectangular picture and back, overlaps fused",
        use="Tangents",
    ),
)

GOLDEN = math.pi * (3 - math.sqrt(5))


class Tangents(SparseOperator):
    """`y` `(C, views, size, size)`: gnomonic views of equirectangular pictures `(C, H, W)`, by linear interpolation.

    Columns of a picture are longitudes from -180 to 180 degrees, rows latitudes from 90 to -90.

    Args:
        views: how many, spread evenly (Fibonacci's lattice), or their middles as (longitude, latitude) in degrees.
        size: of a view in pixels. field: the angle that it covers from side to side, in degrees below 180.
    """

    def __init__(self, views: int | Sequence[Sequence[float]] = 18, size: int = 16, field: float = 90.0):
        super().__init__()
        if isinstance(views, int):
            if isinstance(views, bool) or views < 1:
                raise ValueError(f"a sphere is seen from at least one side, got {views} views")
            heights = [1 - (2 * number + 1) / views for number in range(views)]
            self.middles = [(math.degrees(GOLDEN * k), math.degrees(math.asin(z))) for k, z in enumerate(heights)]
        else:
            self.middles = [(float(longitude), float(latitude)) for longitude, latitude in views]
        if size < 1 or not 0 < field < 180:
            raise ValueError(f"a view has at least one pixel and a field of 0 to 180 degrees, got {size} and {field}")
        self.given = views if isinstance(views, int) else [list(middle) for middle in self.middles]
        self.size, self.field = size, float(field)

    def config(self) -> dict[str, Any]:
        return {"views": self.given, "size": self.size, "field": self.field}

    def entries(self, size: tuple[int, ...]) -> tuple[tuple[int, ...], Tensor, Tensor]:
        if len(size) != 2:
            raise ValueError(f"views are of pictures (C, H, W), not of sizes {size}")
        height, width = size
        longitude, latitude = self.directions()
        column = (longitude / (2 * math.pi) + 0.5) * width - 0.5
        row = ((0.5 - latitude / math.pi) * height - 0.5).clamp(0, height - 1)
        left, top = column.floor(), row.floor()
        pixel = torch.arange(longitude.numel())
        places, weights = [], []
        for across, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
            part = (1 - (column - left - across).abs()) * (1 - (row - top - down).abs())
            where = (top + down).long().clamp_max(height - 1) * width + (left + across).long() % width
            places.append(torch.stack((pixel, where.flatten())))
            weights.append(part.flatten())
        return (len(self.middles), self.size, self.size), torch.cat(places, 1), torch.cat(weights)

    def directions(self) -> tuple[Tensor, Tensor]:
        """Longitude and latitude of every pixel of every view in radians, each `(views, size, size)`."""
        reach = math.tan(math.radians(self.field) / 2)
        at = ((torch.arange(self.size, dtype=torch.float64) + 0.5) / self.size * 2 - 1) * reach
        middles = torch.deg2rad(torch.tensor(self.middles, dtype=torch.float64))[..., None, None]
        turn, rise = middles.unbind(1)
        x, y = at[None, None, :], -at[None, :, None]
        # The plane at distance 1, tilted up by the latitude, then turned by the longitude.
        ahead = rise.cos() - y * rise.sin()
        up = rise.sin() + y * rise.cos()
        x, up, ahead = torch.broadcast_tensors(x, up, ahead)
        return torch.atan2(x, ahead) + turn, torch.atan2(up, torch.hypot(ahead, x))

    def fused(self, y: Tensor) -> Tensor:
        """Pictures `(B, C, H, W)` from views: each pixel the mean of what the views that see it say, by their weights;
        0 where none does."""
        total = self.adjoint(torch.ones_like(y))
        return torch.where(total > 0, self.adjoint(y) / total.clamp_min(torch.finfo(y.dtype).tiny), 0.0)
