"""Data sets with their facts: shape, value range, classes and words travel with the images.

`fewstep.data.open` opens a built-in data set, a folder of images, or an `.npz` file. All images are held in memory, one
byte per value where the source has bytes (50 000 colour images of 32x32: 150 MB), and turned into floats batch by
batch.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fewstep.conditions.text import Text
from fewstep.core.errors import suggest

SPLITS = ("train", "validation", "all")


@dataclass(frozen=True)
class DataSpec:
    """What a data set is: its name, the shape of one sample, (C, H, W) or (T, C, H, W) of a clip, the range its values
    lie in, the number of classes (None without labels), the number of samples, and the words of its captions (None
    without them)."""

    name: str
    shape: tuple[int, ...]
    value_range: tuple[float, float]
    classes: int | None
    n: int
    text: Text | None = None


@dataclass(frozen=True)
class Dataset:
    """Images in memory. `data[rows]` is (images, labels): float32 within `spec.value_range`, and int64 or None.

    `batch(rows)` is the images and what goes with them, by the name of the condition.

    `raw` is (N, C, H, W), either float32 within the range or uint8, of which 0 and 255 are the ends of the range.
    `labels` is (N,) int64 or None. `class_names` names the classes where the source does. `skipped` are the files that
    could not be read. `given` holds what else goes with the images, by the name of the condition, (N, ...) each: the
    degraded pictures `{"y": y}` of which they are the originals, for instance.

    Raises ValueError where anything given does not have one row per image.
    """

    spec: DataSpec
    raw: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    given: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.given.items():
            if len(value) != len(self):
                raise ValueError(f"{name} has {len(value)} rows, but there are {len(self)} images")

    def __len__(self) -> int:
        return self.spec.n

    def __getitem__(self, rows: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        return self._float(self.raw[rows]), None if self.labels is None else self.labels[rows]

    def batch(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The images of some rows, and their "label", their "text" or whatever else is given with them."""
        images, labels = self[rows]
        named = {name: value[rows] for name, value in self.given.items()}
        return images, named if labels is None else {"label": labels, **named}

    @property
    def images(self) -> Tensor:
        """All images as float32 within `spec.value_range`."""
        return self._float(self.raw)

    def _float(self, raw: Tensor) -> Tensor:
        if raw.dtype != torch.uint8:
            return raw
        low, high = self.spec.value_range
        return raw.float().mul_((high - low) / 255).add_(low)

    def std(self) -> float:
        """Standard deviation of all values around their mean, in float64: EDM's sigma_data."""
        chunks = [chunk.double() for chunk in self.raw.split(4096)]
        mean = sum(float(chunk.sum()) for chunk in chunks) / self.raw.numel()
        variance = sum(float((chunk - mean).square().sum()) for chunk in chunks) / self.raw.numel()
        scale = (self.spec.value_range[1] - self.spec.value_range[0]) / 255 if self.raw.dtype == torch.uint8 else 1.0
        return scale * variance**0.5


MOST = 10_000  # rows that stand for the whole of a drawn data set, where all are needed at once


@dataclass(frozen=True)
class Drawn(Dataset):
    """Images drawn on demand, with their captions where these have some. `raw` is empty; `images` are those of the
    first `most` rows."""

    draw: Callable[[Tensor], tuple[Tensor, Tensor | None]] = field(kw_only=True)
    most: int = field(default=MOST, kw_only=True)

    def __getitem__(self, rows: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        return self.draw(torch.arange(len(self))[rows] if isinstance(rows, slice) else rows)[0], None

    def batch(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        images, tokens = self.draw(rows)
        return images, {} if tokens is None else {"text": tokens}

    @property
    def images(self) -> Tensor:
        return self[slice(0, self.most)][0]

    def std(self) -> float:
        return float(self.images.double().std(correction=0))


@dataclass(frozen=True)
class Frames(Dataset):
    """The frames of clips (T, C, H, W) as pictures, each with what goes with its clip: row r is frame r % T of clip
    r // T. `raw` is empty."""

    clips: Dataset = field(kw_only=True)

    def __getitem__(self, rows: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        found = self.batch(torch.arange(len(self))[rows] if isinstance(rows, slice) else rows)
        return found[0], found[1].get("label")

    def batch(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        length = self.clips.spec.shape[0]
        images, named = self.clips.batch(rows // length)
        return images[torch.arange(len(rows)), rows % length], named

    @property
    def images(self) -> Tensor:
        return self.clips.images.flatten(0, 1)

    def std(self) -> float:
        return self.clips.std()


def frames_of(clips: Dataset) -> Frames:
    """The frames of clips. Raises ValueError for data that are no clips."""
    spec = clips.spec
    if len(spec.shape) != 4:
        raise ValueError(f"the data {spec.name!r} has samples of {spec.shape}, which are no clips (T, C, H, W)")
    length, *shape = spec.shape
    still = replace(spec, shape=tuple(shape), n=spec.n * length)
    return Frames(still, torch.empty(0, *shape), class_names=clips.class_names, clips=clips)


def classes_of(labels: Iterable[int], source: str) -> int:
    """The number of classes for labels from 0 to the largest; one warning says which of them have no picture."""
    present = sorted(set(labels))
    classes = present[-1] + 1
    if empty := classes - len(present):
        known = set(present)
        first = [
            str(label) for label in itertools.islice((k for k in itertools.count() if k not in known), min(empty, 5))
        ]
        warnings.warn(
            f"the labels in {source} are {present[0]} to {present[-1]}, {len(present)} different ones: the network gets"
            f" {classes} classes, {empty} of them without a picture ({', '.join(first)}{', ...' if empty > 5 else ''})",
            stacklevel=4,
        )
    return classes


def check_size(name: str, shape: tuple[int, ...], size: int | tuple[int, int] | None) -> None:
    """`ValueError` for any size but the one in which a data set comes."""
    height, width = shape[-2:]
    if size not in (None, (height, width), height if height == width else None):
        raise ValueError(f"{name} comes as {height}x{width}, not as {size!r}: leave size out")


def split_rows(n: int, split: str, validation: float, seed: int) -> np.ndarray:
    """Which of `n` samples belong to the split: a seeded permutation whose last `validation` share is held out.

    Raises ValueError for an unknown split, a share outside [0, 1), or a split that would be empty.
    """
    if split not in SPLITS:
        raise suggest("split", split, SPLITS)
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be a share of at least 0 and below 1, got {validation}")
    order = np.random.default_rng(seed).permutation(n)
    held = round(n * validation)
    rows = {"train": order[: n - held], "validation": order[n - held :], "all": order}[split]
    if not len(rows):
        raise ValueError(f"the {split} split of {n} samples is empty with validation={validation}: change that share")
    return rows
