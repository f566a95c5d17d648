"""Patches of the photographs that ship inside scikit-image, which needs the extra `fewstep[photos]`.

Each photograph is brought to 256 pixels on its shorter side by area averaging, so that all count about alike, and cut
into square patches that overlap by half. The split is by photograph: no patch held out was ever seen in part.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fewstep.core.errors import suggest

SHAPE = (3, 32, 32)
VALUE_RANGE = (-1.0, 1.0)
CLASSES = None
SIDE = 256  # of a photograph's shorter side, in pixels

# The names of `skimage.data`'s functions.
COLOURED = {"train": ("astronaut", "rocket", "retina", "hubble_deep_field"), "validation": ("chelsea", "coffee")}
GREY = {"train": ("brick", "coins", "grass", "gravel", "moon"), "validation": ("camera",)}


def load(split: str = "train", size: int = 32, colour: bool = True) -> tuple[Tensor, None]:
    """The patches, (N, 3 or 1, size, size) float32 in [-1, 1], and None for the labels there are not.

    `split` is "train", "validation" or "all" (train, then validation). In colour the photographs taken in colour; in
    grey these (by Rec. 601's luma) and those taken in grey. Patches start at every multiple of `size // 2`.

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
