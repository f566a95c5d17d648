"""The handwritten digits that ship inside scikit-learn: 1797 grey images of 8x8 pixels, ten classes.

The test set of the UCI "Optical Recognition of Handwritten Digits" data (Alpaydin and Kaynak, 1998): every pixel
counts the ink in a 4x4 block of a 32x32 bitmap, hence the integers 0 to 16.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.data.dataset import Dataset, DataSpec, check_size

METHODS = (
    Method(
        "digits",
        claim="1,797 handwritten digits of 8x8 in ten classes, from scikit-learn; the split is the same everywhere",
        use="open_digits",
    ),
)

SHAPE = (1, 8, 8)
VALUE_RANGE = (-1.0, 1.0)
CLASSES = 10
N_TRAIN = 1437
N_VALIDATION = 360


def load(split: str = "train") -> tuple[Tensor, Tensor]:
    """The images, (N, 1, 8, 8) float32 in [-1, 1], and their labels, (N,) int64 in 0 to 9.

    `split` is "train" (N = 1437), "validation" (N = 360) or "all" (train, then validation). The split is the
    permutation `numpy.random.default_rng(0).permutation(1797)`, the same on every machine. A pixel is
    ink / 8 - 1, so each value is an exact multiple of 1/8.

    Raises ValueError for another split.
    """
    rows = {"train": slice(0, N_TRAIN), "validation": slice(N_TRAIN, None), "all": slice(None)}
    if split not in rows:
        raise suggest("split", split, rows)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(N_TRAIN + N_VALIDATION)[rows[split]]
    ink = torch.from_numpy(bunch.images[order].astype(np.float32))
    return (ink / 8 - 1).unsqueeze(1), torch.from_numpy(bunch.target[order].astype(np.int64))


def open_digits(split: str = "train", size: int | tuple[int, int] | None = None) -> Dataset:
    """The digits with their labels. Raises ValueError for another split, and for another size than 8x8."""
    check_size("digits", SHAPE, size)
    images, labels = load(split)
    return Dataset(DataSpec("digits", SHAPE, VALUE_RANGE, CLASSES, len(images)), images, labels)
