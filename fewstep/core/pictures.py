"""Pictures as they are handed in: files, Pillow's, arrays, tensors and lists of them, brought to one form.

Bytes are 0 to 255 from black to white. Greys deeper than that say in no file format what is white: their span is taken
from the depth that a file states, or from the largest value found (`span_of`), and said wherever it is a guess.
"""

from __future__ import annotations

import functools
import os
import struct
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {"RGB": 3, "L": 1}
BITS = (8, 10, 12, 14, 16, 24, 31, 32)  # the depths of cameras, scanners and number formats
USUAL = (0.0, 65535.0)  # of 16 bits that are all used
BLACKEST = 15  # the high byte of 12 bits in 16
STUBS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # which Pillow recognises and leaves to other programs
BITS_PER_SAMPLE, MAX_SAMPLE_VALUE = 258, 281  # tags of TIFF

Span = tuple[float, float]


class Deep(NamedTuple):
    """The values of a grey picture deeper than bytes: the least, the largest, whether all are whole, and the largest
    that its file states (None where it states none)."""

    low: float
    high: float
    whole: bool
    stated: float | None


@functools.cache
def suffixes() -> frozenset[str]:
    """The endings of the files that Pillow reads by itself, ".png" and so on, in lower case."""
    from PIL import Image

    return frozenset(
        suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN and name not in STUBS
    )


def span_of(found: Iterable[Deep]) -> Span:
    """Black and white of deep pictures that belong together.

    The largest value that their files state; else that of the smallest usual depth which holds all values. Fractions
    run from 0 (or -1) to 1 where they lie within, and otherwise, as all values below 0, from their least to their
    largest.
    """
    pictures = list(found)
    low, high = min(one.low for one in pictures), max(one.high for one in pictures)
    stated = {one.stated for one in pictures}
    if low >= 0 and len(stated) == 1 and (most := stated.pop()) is not None and high <= most:
        return 0.0, most
    whole = all(one.whole for one in pictures)
    if low >= 0 and whole and (high > 1 or high == 0):
        return 0.0, float(2 ** next(bits for bits in BITS if high < 2**bits or bits == BITS[-1]) - 1)
    if -1 <= low and high <= 1:
        return (0.0 if low >= 0 else -1.0), 1.0
    return (0.0 if 0 <= low < high / 2 else low), high if high > low else low + 1


def spoken(span: Span) -> str:
    """What is said of a span."""
    return f"greys deeper than 8 bits: {span[0]:g} was taken as black and {span[1]:g} as white"


def say(span: Span, where: str, stacklevel: int = 2) -> None:
    """One warning that says which span was taken; none where 16 bits are all used."""
    if span != USUAL:
        warnings.warn(f"{where}: {spoken(span)}", stacklevel=stacklevel + 1)


def read(
    file: str | Path | IO[bytes], mode: str, size: tuple[int, int] | None = None, span: Span | None = None
) -> np.ndarray | Deep | str:
    """A picture file as bytes (H, W, C), or the reason why it cannot be read.

    mode: "RGB" or "L". size: height and width to which it is cropped around the centre and resized. span: black and
    white of greys deeper than bytes; without it a `Deep` comes back for these.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            deep = _deep(opened)
            if deep is not None and span is None:
                return deep
            cut = ";16" in raw_mode(opened)
            image = convert(ImageOps.exif_transpose(opened), mode, span)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        name = getattr(file, "name", None) if not isinstance(file, str | Path) else Path(file).name
        return str(error).replace(str(file), str(name)) or type(error).__name__
    if cut and deep is None and 0 < np.asarray(image).max() <= BLACKEST:
        return "its 16-bit colours are nearly black, and only their high bytes can be read: save it with 8 bits"
    if size is not None and image.size != (size[1], size[0]):
        # Crops to the target's aspect around the centre, then resizes with a filter as wide as the reduction needs.
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image.height, image.width, MODES[mode])


def depth(file: str | Path | IO[bytes]) -> Deep | None:
    """The extremes of a file of greys deeper than bytes; None for every other file, of which only the head is read."""
    from PIL import Image

    try:
        with Image.open(file) as opened:
            return _deep(opened)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError):
        return None


def read_one(
    file: str | Path | IO[bytes], mode: str, size: tuple[int, int] | None = None, what: str = ""
) -> np.ndarray:
    """A picture by itself, its span its own; `ValueError` where it cannot be read. `what` is it called."""
    what = what or str(file)
    found = read(file, mode, size)
    if isinstance(found, Deep):
        span = span_of([found])
        say(span, what, 3)
        found = read(file, mode, size, span)
    if isinstance(found, np.ndarray):
        return found
    raise ValueError(f"{what} cannot be read as a picture: {found}")


def for_model(file: str | Path | IO[bytes], model: Any, what: str, grey: bool = False) -> Tensor:
    """A picture file as `(C, H, W)` of a model's data, in their range, cropped and resized to their size; a frame's,
    for a model of clips that reads a picture.

    `grey` gives one channel in [0, 1], for masks. `what` the file is called in messages.

    Raises:
        ValueError: a model whose samples are no pictures, a file that cannot be read.
    """
    shape = data_shape(model) or ()
    shape = shape[1:] if len(shape) == 4 and "picture" in model.conditions else shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"this model's samples are no pictures (their shape is {shape}): {what} cannot be used")
    found = read_one(file, "L" if grey or shape[0] == 1 else "RGB", None if grey else (shape[1], shape[2]), what)
    if grey:  # by area: a sharper filter would overshoot at a mask's edges
        from PIL import Image, ImageOps

        fitted = ImageOps.fit(Image.fromarray(found[..., 0]), (shape[2], shape[1]), Image.Resampling.BOX)
        found = np.asarray(fitted)[..., None]
    values = torch.from_numpy(found.copy()).permute(2, 0, 1).float() / 255
    if grey:
        return values
    low, high = model.value_range or (-1.0, 1.0)
    return low + (high - low) * values


def convert(image: Image, mode: str, span: Span | None = None) -> Image:
    """The picture as 8-bit "RGB" or "L"; transparency is laid on white, and greys deeper than bytes run over `span`,
    by default their own (`span_of`)."""
    from PIL import Image as pil

    if (deep := _deep(image)) is not None:
        black, white = span or span_of([deep])
        values = np.asarray(image)
        bits = round(white + 1).bit_length() - 1
        if black == 0 and values.dtype.kind in "iu" and bits >= 8 and white == 2**bits - 1:
            values = values.astype(np.int64).clip(0, int(white)) >> (bits - 8)  # whole depths lose their low bits
        else:
            values = np.rint((values.astype(np.float64) - black).clip(0, white - black) * (255 / (white - black)))
        return pil.fromarray(values.astype(np.uint8)).convert(mode)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = pil.alpha_composite(pil.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def as_pictures(
    value: Any, what: str, shape: Sequence[int] | None = None, value_range: tuple[float, float] | None = (-1.0, 1.0)
) -> Tensor:
    """What was handed in as pictures, `(R, *shape)` floats: one, or one for each of R samples.

    Args:
        value: a float tensor or array as it is; bytes (uint8), which are brought to the range; a Pillow picture or the
            path of one; or a list of any of these. Arrays may have their channels last.
        what: the argument, for the messages. shape: of one picture; None takes any.
        value_range: that of the values; None leaves floats unchecked, and takes bytes to -1 to 1.

    Raises:
        ValueError: another kind, dtype or shape; values that are not finite, or so far outside the range that they must
            be of another one; a file that cannot be read.
    """
    if isinstance(value, list | tuple):
        rows = [as_pictures(one, f"{what}[{i}]", shape, value_range) for i, one in enumerate(value)]
        if not rows or any(row.shape != rows[0].shape or len(row) != 1 for row in rows):
            shapes = ", ".join(str(tuple(row.shape[1:])) for row in rows) or "nothing"
            raise ValueError(f"{what} must be one picture or a list of pictures of one shape, got a list of {shapes}")
        return torch.cat(rows)
    tensor = _tensor(value, what, shape)
    wanted = "(B, *shape)" if shape is None else f"({', '.join(map(str, shape))}) or (B, {', '.join(map(str, shape))})"
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise ValueError(f"{what} must hold floats, or bytes (uint8), got {tensor.dtype}")
    if shape is None:
        rows_of = tensor if tensor.ndim == 4 else tensor[None]
    elif tuple(tensor.shape) == tuple(shape):
        rows_of = tensor[None]
    elif tuple(tensor.shape[1:]) == tuple(shape):
        rows_of = tensor
    else:
        raise ValueError(f"{what} must have shape {wanted}, got {tuple(tensor.shape)}")
    if tensor.dtype == torch.uint8:
        low, high = value_range or (-1.0, 1.0)
        return rows_of.float() * ((high - low) / 255) + low
    if value_range is not None and tensor.numel():
        check_range(tensor, what, value_range)
    return rows_of


def mask_values(value: Any, name: str) -> Tensor:
    """A mask as a tensor of floats: a tensor or array of its own shape, or a picture or file as `(1, H, W)`.

    Pictures and files are black (0) to white (1), as bytes are where any is above 1. `ValueError` for values outside.
    """
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.array(value))
    if not isinstance(value, Tensor):
        return as_pictures(value, name, None, (0.0, 1.0)).mean(1)
    bytes_ = value.dtype == torch.uint8 and bool((value > 1).any())
    mask = value if value.is_floating_point() else value.float() / (255 if bytes_ else 1)
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError(f"the {name} must lie between 0 and 1, got {float(mask.min()):g} to {float(mask.max()):g}")
    return mask


def read_mask(value: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    """A mask (`mask_values`), or a list of them, as `(R, *shape)`: of a picture's shape, or without its channels."""
    if isinstance(value, list | tuple) and value:
        return torch.cat([read_mask(one, f"{name}[{i}]", shape) for i, one in enumerate(value)])
    mask = mask_values(value, name)
    try:
        full = mask.expand(shape if mask.ndim <= len(shape) else (len(mask), *shape))
    except RuntimeError:
        wanted = f"{shape}, or that without channels"
        raise ValueError(f"the {name} must have the picture's shape {wanted}, got {tuple(mask.shape)}") from None
    return full if full.ndim > len(shape) else full[None]


def data_shape(model: Any) -> tuple[int, ...] | None:
    """The shape of a model's data: that of its samples, in pixels for latent models; None where it is not known."""
    autoencoder, shape = model.facts.autoencoder, model.shape
    if autoencoder is None or shape is None:
        return None if shape is None else tuple(shape)
    if not hasattr(autoencoder, "pixel_channels"):
        own = getattr(autoencoder, "shape", None)
        return None if own is None else tuple(own)
    return (autoencoder.pixel_channels, *(n * autoencoder.factor for n in shape[1:]))


def check_range(values: Tensor, what: str, value_range: tuple[float, float]) -> None:
    """`ValueError` for values that are not finite, or that lie outside the range by more than its own width: samples
    overshoot a little, but 0 to 255 is not -1 to 1."""
    low, high = value_range
    least, most = (float(v) for v in values.detach().aminmax())
    if not (least >= 2 * low - high and most <= 2 * high - low):  # written so that NaN fails too
        if least != least or most != most:
            raise ValueError(f"{what} has values that are not finite")
        raise ValueError(f"{what} must lie within {low:g} to {high:g}, got {least:g} to {most:g}")


def _tensor(value: Any, what: str, shape: Sequence[int] | None) -> Tensor:
    """A tensor, an array, a picture or a file as a tensor, channels first."""
    if isinstance(value, Tensor):
        return value
    grey = shape is not None and len(shape) == 3 and shape[0] == 1
    if isinstance(value, str | os.PathLike):
        path = Path(value)
        if not path.is_file():
            raise ValueError(f"{what} names a file that does not exist: {str(path)!r}")
        try:
            value = read_one(path, "L" if grey else "RGB")
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
    elif hasattr(value, "getbands"):  # a Pillow picture
        if (deep := _deep(value)) is not None:
            say(span_of([deep]), what, 3)
        value = np.asarray(convert(value, "L" if grey else "RGB"))
    if not isinstance(value, np.ndarray):
        kinds = "a tensor, an array, a Pillow picture, the path of one, or a list of them"
        raise ValueError(f"{what} must be {kinds}, got {type(value).__name__}")
    if value.dtype.kind not in "f" and value.dtype != np.uint8:
        raise ValueError(f"{what} must hold floats, or bytes (uint8), got {value.dtype}")
    tensor = torch.from_numpy(np.array(value))
    if shape is None:
        last = tensor.ndim in (3, 4) and tensor.shape[-1] in (1, 3) and tensor.shape[-3] not in (1, 3)
        return tensor.movedim(-1, -3) if last else tensor
    fits = [tuple(shape), tuple(tensor.shape[:1]) + tuple(shape)]
    if tuple(tensor.shape) in fits or len(shape) != 3:
        return tensor
    turned = tensor[..., None] if tensor.shape[-2:] == tuple(shape[1:]) and grey else tensor
    turned = turned.movedim(-1, -3) if turned.ndim >= 3 else turned
    return turned if tuple(turned.shape) in fits or tuple(turned.shape[1:]) == tuple(shape) else tensor


def _deep(image: Image) -> Deep | None:
    """The extremes of greys deeper than bytes, None for other pictures."""
    if not image.mode.startswith(("I", "F")):
        return None
    stated = _stated(image)  # while the file is open
    values = np.asarray(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    whole = values.dtype.kind != "f" or bool((values == np.rint(values)).all())
    return Deep(float(values.min()), float(values.max()), whole, stated)


def _stated(image: Image) -> float | None:
    """The largest value that a file states: TIFF's largest sample or odd depth, PNG's significant bits."""
    tags: Any = getattr(image, "tag_v2", {})
    for tag in (MAX_SAMPLE_VALUE, BITS_PER_SAMPLE):
        found = tags.get(tag)
        number = found[0] if isinstance(found, tuple) and found else found
        if isinstance(number, int) and number > 0 and not (tag == BITS_PER_SAMPLE and number in (8, 16, 32)):
            return float(number if tag == MAX_SAMPLE_VALUE else 2**number - 1)
    file = getattr(image, "fp", None)
    if image.format != "PNG" or file is None:
        return None
    place = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"sBIT"):
            file.seek(struct.unpack(">I", head[:4])[0] + 4, os.SEEK_CUR)
        bits = file.read(1)[0] if head[4:] == b"sBIT" else 16
        return float(2**bits - 1) if 8 <= bits < 16 else None
    finally:
        file.seek(place)


def raw_mode(image: Image) -> str:
    """How a file stores its pixels, as far as Pillow says before it decodes them: "RGB;16B" for 16-bit colours."""
    tiles: Any = getattr(image, "tile", None) or [(None, None, None, "")]
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
