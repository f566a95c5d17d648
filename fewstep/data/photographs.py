"""Patches of the photographs that ship inside scikit-image, which needs the extra `fewstep[photos]`.

Each photograph is brought to 256 pixels on its shorter side by area averaging, so that all carry about the same weight,
and cut into square patches that overlap by half. The split is by photograph: no part of a held-out patch is in the
training data.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.pictures import MODES
from fewstep.data.dataset import Dataset, DataSpec

METHODS = (
    Method(
        "photographs",
        claim="patches of the photographs in scikit-image; no training patch overlaps a held-out one",
        use="open_photographs",
    ),
)

SHAPE = (3, 32, 32)
VALUE_RANGE = (-1.0, 1.0)
SIDE = 256  # of a photograph's shorter side, in pixels

# The names of `skimage.data`'s functions.
COLOURED = {"train": ("astronaut", "rocket", "retina", "hubble_deep_field"), "validation": ("chelsea", "coffee")}
GREY = {"train": ("brick", "coins", "grass", "gravel", "moon"), "validation": ("camera",)}


def load(split: str = "train", size: int = 32, colour: bool = True) -> tuple[Tensor, None]:
    """The patches, (N, 3 or 1, size, size) float32 in [-1, 1], and None in place of labels.

    `split` is "train", "validation" or "all" (train, then validation). In colour: the photographs taken in colour; in
    grey: these (by Rec. 601's luma) and those taken in grey. Patches start at every multiple of `size // 2`.

    Raises:
        ValueError: another split; a size outside 2 to 256. ImportError: scikit-image is not installed.
    """
    splits = {"train": ("train",), "validation": ("validation",), "all": ("train", "validation")}
    if split not in splits:
        raise suggest("split", split, splits)
    if not 2 <= size <= SIDE:
        raise ValueError(f"a patch must be 2 to {SIDE} pixels wide, got {size}")
    try:
        from skimage import data
    except ImportError:
        raise ImportError("the photographs ship with scikit-image: pip install 'fewstep[photos]'") from None
    parts = []
    for part in splits[split]:
        names = COLOURED[part] + (() if colour else GREY[part])
        parts += [_patches(_reduced(getattr(data, name)(), colour), size) for name in names]
    return torch.cat(parts), None


def open_photographs(split: str = "train", size: int | tuple[int, int] | None = None, mode: str = "RGB") -> Dataset:
    """The patches, 32 pixels wide where no size is given; `mode` "RGB" takes those in colour, "L" all in grey.

    Raises ValueError as `load` does, and for sizes that are not square and other modes.
    """
    if mode not in MODES:
        raise suggest("mode", mode, MODES)
    sides = {SHAPE[1]} if size is None else {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise ValueError(f"a patch of the photographs is square: give one number, not {size!r}")
    patches, _ = load(split, sides.pop(), colour=mode == "RGB")
    return Dataset(DataSpec("photographs", tuple(patches.shape[1:]), VALUE_RANGE, None, len(patches)), patches)


def _reduced(pixels: np.ndarray, colour: bool) -> Tensor:
    """Bytes (H, W) or (H, W, 3) as (C, h, w) in [-1, 1], the shorter of h and w being `SIDE`."""
    picture = torch.from_numpy(pixels.astype(np.float32))
    picture = picture.permute(2, 0, 1) if picture.ndim == 3 else picture[None]
    if not colour and len(picture) == 3:
        picture = torch.einsum("c,chw->hw", picture.new_tensor([0.299, 0.587, 0.114]), picture)[None]
    height, width = picture.shape[1:]
    target = (SIDE, round(width * SIDE / height)) if height <= width else (round(height * SIDE / width), SIDE)
    return interpolate(picture[None], size=target, mode="area")[0] / 127.5 - 1


def _patches(picture: Tensor, size: int) -> Tensor:
    """All whole patches, row by row: (C, H, W) to (N, C, size, size)."""
    tiles = picture.unfold(1, size, size // 2).unfold(2, size, size // 2)
    return tiles.permute(1, 2, 0, 3, 4).reshape(-1, len(picture), size, size).contiguous()
