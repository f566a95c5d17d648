"""Drawing coloured shapes: antialiased from signed distances, on a plain dark ground, differentiable in the centres."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIDE = 32  # pixels
BACKGROUND = -0.8
# In the order of captions.COLOURS; the two closest are 1.1 apart, the darkest 1.4 from the background.
PALETTE = (
    (0.85, -0.65, -0.65),
    (-0.60, 0.55, -0.55),
    (-0.65, -0.40, 0.95),
    (0.95, 0.75, -0.60),
    (0.50, -0.55, 0.80),
    (-0.50, 0.75, 0.85),
)
RADII = (4.0, 6.25)  # pixels, in the order of captions.SIZES
REACH = 1.15  # no shape extends further from its centre along an axis, in radii
# In radii: half a square's side, half a cross's arm and its half width, a triangle's top, bottom and half base.
_SQUARE, _ARM, _WIDTH, _TOP, _BOTTOM, _BASE = 0.88, 1.08, 0.38, 1.15, 0.8, 1.12
_SLOPE = math.hypot(_BASE, _TOP + _BOTTOM)


def coverage(shape: Tensor, radius: Tensor, centre: Tensor, side: int = SIDE, stroke: float | None = None) -> Tensor:
    """How much of each pixel a shape covers, (..., side, side) in [0, 1]; with a stroke, its outline alone: a line of
    so many pixels, whose outer edge is the shape's.

    shape (...) is an index of captions.SHAPES, radius (...) is in pixels, centre (..., 2) is (x, y) in pixels from the
    upper left corner of the picture, so that the first pixel's centre is (0.5, 0.5). The coverage is 1/2 minus the
    signed distance to the edge, clipped, which is exact for straight edges along the axes.
    """
    grid = torch.arange(side, device=centre.device, dtype=centre.dtype) + 0.5
    r = radius.to(centre.dtype)[..., None, None]
    x = (grid - centre[..., 0, None])[..., None, :].abs()  # (..., 1, side): all shapes are symmetric
    y = (grid - centre[..., 1, None])[..., :, None]
    high = y.abs()
    distance = torch.stack(
        (
            (x * x + high * high).clamp_min(1e-12).sqrt() - r,
            torch.maximum(x, high) - _SQUARE * r,
            torch.maximum(((_TOP + _BOTTOM) * x - _BASE * (y + _TOP * r)) / _SLOPE, y - _BOTTOM * r),
            torch.maximum(torch.maximum(x, high) - _ARM * r, torch.minimum(x, high) - _WIDTH * r),
        ),
        dim=-3,
    )
    index = shape[..., None, None, None].expand(*shape.shape, 1, side, side)
    distance = distance.gather(-3, index).squeeze(-3)
    whole = (0.5 - distance).clamp(0, 1)
    return whole if stroke is None else whole - (0.5 - stroke - distance).clamp(0, 1)


def paint(colour: Tensor, masks: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) of K masks (B, K, H, W) in the colours (B, K, 3), later ones over earlier ones."""
    image = torch.full((len(masks), 3, *masks.shape[2:]), BACKGROUND, dtype=masks.dtype, device=masks.device)
    for k in range(masks.shape[1]):
        image = torch.lerp(image, colour[:, k, :, None, None].expand_as(image), masks[:, k, None].expand_as(image))
    return image


def render(
    colour: Tensor, shape: Tensor, size: Tensor, centre: Tensor, present: Tensor, stroke: float | None = None
) -> Tensor:
    """Pictures (B, 3, 32, 32) float32 in [-1, 1] of K objects each, with a stroke in outline.

    colour, shape and size (B, K) are indices of captions.COLOURS, SHAPES and SIZES, centre (B, K, 2) is (x, y) in
    pixels (see `coverage`), present (B, K) says which objects exist.
    """
    palette = torch.tensor(PALETTE, dtype=centre.dtype, device=centre.device)
    radii = torch.tensor(RADII, dtype=centre.dtype, device=centre.device)
    masks = coverage(shape, radii[size], centre, stroke=stroke) * present[..., None, None]
    return paint(palette[colour], masks)
