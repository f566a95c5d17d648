"""Samples as pictures: pixel values from tensors, grids, and PNG and GIF files that carry their parameters."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fewstep.core.files import write

VISIBLE = 64  # a side, in pixels, at which a picture can be read
PACE = 120  # milliseconds that a frame of a clip is seen


def to_pixels(images: Tensor, value_range: tuple[float, float] = (-1.0, 1.0)) -> NDArray[np.uint8]:
    """Pixels (..., H, W) of grey images (..., 1, H, W), or (..., H, W, 3) of colour images (..., 3, H, W).

    `value_range` (low, high) goes to 0 and 255; values outside are clipped, NaN is 0, since a run that
    diverged should be seen as such and not stop the report.
    """
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range must be (low, high) with low < high, not {value_range}")
    if images.ndim < 3 or images.shape[-3] not in (1, 3):
        raise ValueError(f"images must be (..., 1 or 3, H, W), not {tuple(images.shape)}")
    values = images.detach().to("cpu").double().numpy()
    scaled = np.nan_to_num((values - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    pixels = np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)
    return pixels[..., 0, :, :] if images.shape[-3] == 1 else np.moveaxis(pixels, -3, -1)


def image_grid(
    images: Tensor,
    value_range: tuple[float, float] = (-1.0, 1.0),
    scale: int | None = None,
    gap: int = 4,
    fill: int = 255,
) -> NDArray[np.uint8]:
    """One picture, (height, width) or (height, width, 3), of images (R, C, *shape) or (N, *shape).

    N images go row by row into a grid as square as can be, wider than high. Each pixel becomes a block of
    `scale` x `scale`, by default as many as bring the shorter side to 64 pixels; `gap` pixels of grey level
    `fill` lie between images and in places left over. Raises ValueError for no images and other shapes.
    """
    if images.ndim not in (4, 5) or images.numel() == 0:
        raise ValueError(f"images must be (R, C, channels, H, W) or (N, channels, H, W), not {tuple(images.shape)}")
    if gap < 0 or (scale is not None and scale < 1):
        raise ValueError(f"scale must be at least 1 and gap at least 0, not {scale} and {gap}")
    columns = images.shape[1] if images.ndim == 5 else int(np.ceil(np.sqrt(len(images))))
    pixels = to_pixels(images.flatten(0, 1) if images.ndim == 5 else images, value_range)
    height, width = pixels.shape[1:3]
    scale = scale or max(1, -(-VISIBLE // min(height, width)))
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    high, wide = height * scale + gap, width * scale + gap
    rows = -(-len(pixels) // columns)
    grid = np.full((rows * high - gap, columns * wide - gap, *pixels.shape[3:]), fill, np.uint8)
    for index, picture in enumerate(pixels):
        top, left = index // columns * high, index % columns * wide
        grid[top : top + height * scale, left : left + width * scale] = picture
    return grid


def png_bytes(array: NDArray[np.uint8], metadata: Mapping[str, Any] | None = None) -> bytes:
    """The PNG of pixels (H, W) or (H, W, 3); each entry of `metadata` is a text chunk, JSON unless a string.

    The same pixels and metadata give the same bytes. Raises ValueError for another shape or type.
    """
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(f"a picture must be uint8, (H, W) or (H, W, 3), not {array.dtype}, {array.shape}")
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in (metadata or {}).items():
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        if text.isascii():
            chunks.add_text(key, text)
        else:
            chunks.add_itxt(key, text)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", pnginfo=chunks, optimize=True)
    return buffer.getvalue()


def save_png(path: str | Path, array: NDArray[np.uint8], metadata: Mapping[str, Any] | None = None) -> Path:
    """Write a PNG file with its parameters inside (see `png_bytes`), whole or not at all; give its path."""
    return write(path, png_bytes(array, metadata))


def gif_bytes(frames: Sequence[NDArray[np.uint8]], comment: str = "") -> bytes:
    """The GIF of frames (H, W) or (H, W, 3) of one size, which runs for ever; its comment is text.

    Raises ValueError for no frames, other shapes and frames of several sizes.
    """
    if len({frame.shape for frame in frames}) != 1 or any(f.dtype != np.uint8 or f.ndim not in (2, 3) for f in frames):
        raise ValueError(f"frames must be uint8, of one size, not {[frame.shape for frame in frames][:3]}")
    from PIL import Image

    first, *rest = (Image.fromarray(np.ascontiguousarray(frame)) for frame in frames)
    buffer = io.BytesIO()
    first.save(
        buffer, "GIF", save_all=True, append_images=rest, duration=PACE, loop=0, comment=comment.encode(),
        optimize=False,
    )  # fmt: skip
    return buffer.getvalue()
