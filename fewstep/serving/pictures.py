"""Pictures that come with requests, and those that go back: read with care, written with what made them."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.pictures import for_model, raw_mode
from fewstep.report.grid import image_grid, png_bytes

FORMATS = ("PNG", "JPEG", "WEBP")
KEY = "fewstep"  # the text chunk of a PNG, as `fewstep sample` names it


def from_base64(text: str, what: str) -> bytes:
    """The bytes of base64, with or without "data:image/png;base64," before it; `ValueError` for anything else."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ValueError(f"{what} must be a picture in base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{what} must be a picture in base64") from None


def opened(data: bytes, what: str, most: int) -> Any:
    """A still picture of 8 bits a channel, decoded.

    Raises:
        ValueError: another format, more than `most` pixels, several frames, 16 bits, damage.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > most:
            raise ValueError(f"{what} has {width}x{height} pixels, more than the {most} that are read")
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"{what} is animated: send one frame")
        if "16" in raw_mode(image) or image.mode.startswith(("I", "F")):
            raise ValueError(f"{what} has 16 bits a channel: send 8")
        image.load()
    except UnidentifiedImageError:
        raise ValueError(f"{what} is no picture in {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{what} has more than the {most} pixels that are read") from None
    except (OSError, SyntaxError, EOFError, IndexError) as error:
        raise ValueError(f"{what} cannot be read: it is damaged or cut off ({type(error).__name__})") from None
    return image


def picture(data: bytes, model: Denoiser, what: str, most: int) -> Tensor:
    """A picture as `(C, H, W)` of the model's data; `ValueError` as `opened`, and for models that have no pictures."""
    return for_model(_again(opened(data, what, most)), model, what)


def mask(data: bytes, model: Denoiser, what: str, most: int) -> Tensor:
    """A mask as `(1, H, W)`, 1 where it is to be drawn anew: where it is transparent or, having no such part, white."""
    image = opened(data, what, most)
    if "A" in image.getbands() or "transparency" in image.info:
        from PIL import ImageOps

        image = ImageOps.invert(image.convert("RGBA").getchannel("A"))
    return for_model(_again(image.convert("L")), model, what, grey=True)


def transparent(data: bytes, what: str, most: int) -> bool:
    """Whether a picture has transparent parts, which say what is to be drawn anew."""
    image = opened(data, what, most)
    if "A" not in image.getbands() and "transparency" not in image.info:
        return False
    return int(np.asarray(image.convert("RGBA").getchannel("A")).min()) < 255


def _again(image: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    buffer.seek(0)
    return buffer


def png(sample: Tensor, value_range: tuple[float, float] | None, facts: dict[str, Any] | None = None) -> bytes:
    """One sample `(C, H, W)` as a PNG, pixel for pixel what `fewstep sample --out FOLDER` writes.

    Raises:
        ValueError: samples that are no pictures.
    """
    if sample.ndim != 3 or sample.shape[0] not in (1, 3):
        raise ValueError(f"samples of shape {tuple(sample.shape)} are no pictures")
    grid = image_grid(sample[None].to(torch.float32), value_range or (-1.0, 1.0), scale=1)
    return png_bytes(grid, {KEY: facts} if facts is not None else None)


def picture_pixels(data: bytes) -> Any:
    """The pixels of a PNG, (H, W) or (H, W, 3) uint8."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.asarray(image)
