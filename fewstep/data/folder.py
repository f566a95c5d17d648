"""Images from a folder, through Pillow."""

from __future__ import annotations

import struct
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.data.spec import Dataset, DataSpec, split_rows

METHODS = (
    Method(
        "folder",
        kind="format",
        claim="every picture below a folder; held-out pictures stay held out even if another turns out broken",
        use="open_folder",
        facts={"suffix": "/"},
    ),
)

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
MODES = {"RGB": 3, "L": 1}
NAMED = 10  # how many broken files or sizes a message lists before it only counts


def open_folder(
    root: str | Path,
    split: str = "train",
    size: int | tuple[int, int] | None = None,
    mode: str = "RGB",
    labels: bool = False,
    validation: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """All images below `root`, in the order of their paths before the split permutes them.

    The split is drawn over files, so it does not change when one of them turns out to be broken. Transparent images
    are laid on white. Of several frames the first is read. A broken image is skipped; one warning at the end names
    the first ten and gives their number.

    Raises ValueError when there is no image, when none of the split can be read, when sizes differ and `size` is None,
    and, with `labels`, when an image lies outside every subfolder.
    """
    root = Path(root)
    if mode not in MODES:
        raise suggest("mode", mode, MODES)
    target = (size, size) if isinstance(size, int) else size
    if target is not None and (len(target) != 2 or min(target) < 1):
        raise ValueError(f"size must be a positive number or (height, width), got {size!r}")
    files = sorted(pictures_below(root))
    if not files:
        raise ValueError(f"no images in {root} or below it: looked for {', '.join(sorted(SUFFIXES))}")
    classes = _classes(root, files) if labels else ()

    rows = [files[row] for row in split_rows(len(files), split, validation, seed)]
    images: list[np.ndarray] = []
    kept: list[Path] = []
    broken: list[tuple[Path, str]] = []
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        for path, result in zip(rows, pool.map(lambda path: _read(path, mode, target), rows), strict=True):
            if isinstance(result, str):
                broken.append((path, result))
            else:
                images.append(result)
                kept.append(path)
    named = "; ".join(f"{path.relative_to(root)} ({reason})" for path, reason in broken[:NAMED])
    if len(broken) > NAMED:
        named += f"; and {len(broken) - NAMED} more"
    if not images:
        raise ValueError(f"none of the {len(rows)} images in {root} could be read: {named}")
    if broken:
        warnings.warn(f"skipped {len(broken)} of {len(rows)} images in {root}: {named}", stacklevel=3)
    _check_sizes(root, images)

    raw = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    index = {name: number for number, name in enumerate(classes)}
    numbers = torch.tensor([index[_class(root, path)] for path in kept]) if labels else None
    spec = DataSpec(root.resolve().name, tuple(raw.shape[1:]), (-1.0, 1.0), len(classes) or None, len(raw))
    return Dataset(spec, raw, numbers, classes, tuple(str(path.relative_to(root)) for path, _ in broken))


def pictures_below(root: Path) -> Iterator[Path]:
    """The picture files in a folder and its subfolders, recognised by their names."""
    for path in root.rglob("*"):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


def _class(root: Path, path: Path) -> str:
    return path.relative_to(root).parts[0]


def _classes(root: Path, files: list[Path]) -> tuple[str, ...]:
    if loose := [path.name for path in files if path.parent == root]:
        raise ValueError(
            f"labels=True takes the subfolders of {root} as classes, but {len(loose)} images lie outside of them, "
            f"{loose[0]!r} first: move them, or leave labels out"
        )
    return tuple(sorted({_class(root, path) for path in files}))


def _read(path: Path, mode: str, target: tuple[int, int] | None) -> np.ndarray | str:
    """One image as (H, W, C) bytes, or the reason why it cannot be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = convert(ImageOps.exif_transpose(opened), mode)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        return str(error).replace(str(path), path.name) or type(error).__name__
    if target is not None and image.size != (target[1], target[0]):
        # Crops to the target's aspect around the centre, then resizes with a filter as wide as the reduction needs.
        image = ImageOps.fit(image, (target[1], target[0]), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image.height, image.width, MODES[mode])


def convert(image: Image, mode: str) -> Image:
    """The image as 8-bit "RGB" or "L"; transparency is laid on white, 16-bit greys lose their low byte.

    Raises ValueError for images of floating-point numbers, whose range is not stated.
    """
    from PIL import Image as pil

    if image.mode == "F":
        raise ValueError("an image of floating-point numbers has no known range")
    if image.mode.startswith("I"):  # Pillow would clip these to 255
        image = pil.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = pil.alpha_composite(pil.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _check_sizes(root: Path, images: list[np.ndarray]) -> None:
    sizes = Counter(image.shape[:2] for image in images)
    if len(sizes) == 1:
        return
    listed = ", ".join(f"{h}x{w} ({count})" for (h, w), count in sizes.most_common(NAMED))
    more = f" and {len(sizes) - NAMED} other sizes" if len(sizes) > NAMED else ""
    smallest = min(min(size) for size in sizes)
    raise ValueError(
        f"images in {root} differ in size (height x width): {listed}{more}; "
        f"give size={smallest} (or another) to crop and resize them all"
    )
