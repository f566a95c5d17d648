"""Images from a NumPy `.npz` file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from fewstep.core.files import writing
from fewstep.core.methods import Method
from fewstep.data.dataset import Dataset, DataSpec, classes_of, split_rows

METHODS = (
    Method(
        "npz",
        kind="format",
        claim="arrays of pictures and labels; bytes stay as they are, and nothing is unpickled",
        use="open_npz",
        facts={"suffix": ".npz"},
    ),
)

UNNAMED = {"images": "arr_0", "labels": "arr_1"}  # as np.savez calls what is given without names


def open_npz(
    path: str | Path,
    split: str = "train",
    value_range: tuple[float, float] | None = None,
    validation: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """The arrays `images`, (N, H, W) or (N, H, W, C), and optionally `labels`, (N,) whole numbers from 0; or the arrays
    without names that guided-diffusion writes, `arr_0` for the images and `arr_1` for the labels.

    The network gets a class for every number up to the largest label, and a warning says which of them have no picture;
    or as many as an array `classes`, one whole number, says: of a part of a data set, those of all of it.
    Bytes (uint8) become -1 to 1. Floats stay as they are and need their range stated, by `value_range` or by an array
    `value_range` of two numbers in the file; every value must lie within. Pickled objects are refused.
    """
    path = Path(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an .npz file (a zip of NumPy arrays)")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            called = {name: name for name in ("images", "labels", "value_range", "classes")}
            if "images" not in names:
                called |= UNNAMED
            arrays = {what: _read(file, name, path) for what, name in called.items() if name in names}
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if "images" not in arrays:
        raise ValueError(f"{path} has no array 'images'; it has {', '.join(names) or 'nothing'}")
    images = arrays["images"]
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] > 4 or not images.size:
        raise ValueError(
            f"images in {path} must be (N, H, W) or (N, H, W, C) with at most 4 channels, "
            f"got shape {arrays['images'].shape}"
        )
    labels = arrays.get("labels")
    if labels is not None:
        _check_labels(labels, len(images), path)
    limits = _limits(images, value_range, arrays.get("value_range"), path)

    rows = split_rows(len(images), split, validation, seed)
    kept = np.ascontiguousarray(images[rows].transpose(0, 3, 1, 2))
    raw = torch.from_numpy(kept if kept.dtype == np.uint8 else kept.astype(np.float32))
    classes = None if labels is None else _classes(labels, arrays.get("classes"), path)
    spec = DataSpec(path.stem, tuple(raw.shape[1:]), limits, classes, len(rows))
    return Dataset(spec, raw, None if labels is None else torch.from_numpy(labels[rows].astype(np.int64)))


def write_npz(path: str | Path, images: Iterable[np.ndarray], shape: Sequence[int], **arrays: np.ndarray) -> Path:
    """Write images that come in parts as one array `images` of that shape, float32, and other arrays beside them.

    Only a part is in memory at a time, and the file appears whole or not at all (`fewstep.core.files.writing`).

    Raises:
        ValueError: parts that do not add up to the shape.
    """
    with writing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as entry:
            header = {"descr": "<f4", "fortran_order": False, "shape": tuple(int(n) for n in shape)}
            np.lib.format.write_array_header_2_0(entry, header)
            rows = 0
            for part in images:
                if part.shape[1:] != tuple(shape[1:]):
                    raise ValueError(f"a part of images of {tuple(shape[1:])} holds some of {part.shape[1:]}")
                entry.write(np.ascontiguousarray(part, dtype="<f4").data)
                rows += len(part)
            if rows != shape[0]:
                raise ValueError(f"{shape[0]} images were to be written, and {rows} came")
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)
    return Path(path)


def _read(file: np.lib.npyio.NpzFile, name: str, path: Path) -> np.ndarray:
    try:
        return file[name]
    except ValueError as error:
        if "pickle" in str(error):
            raise ValueError(
                f"{name!r} in {path} holds pickled Python objects, which could run code and are never read: "
                "save it as an array of numbers"
            ) from None
        raise ValueError(f"{name!r} in {path} cannot be read: {error}") from None


def _check_labels(labels: np.ndarray, n: int, path: Path) -> None:
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels in {path} must be {n} whole numbers, one per image, got shape {labels.shape} of {labels.dtype}"
        )
    if labels.min() < 0:
        raise ValueError(f"labels in {path} start at 0, got {labels.min()}")


def _classes(labels: np.ndarray, stated: np.ndarray | None, path: Path) -> int:
    """How many classes there are: as many as the file states, or those up to the largest label."""
    if stated is None:
        return classes_of(labels.tolist(), str(path))
    if stated.shape != () or stated.dtype.kind not in "iu" or int(stated) <= labels.max():
        raise ValueError(f"classes in {path} must be a whole number above the largest label, {labels.max()}")
    return int(stated)


def _limits(
    images: np.ndarray, given: tuple[float, float] | None, stored: np.ndarray | None, path: Path
) -> tuple[float, float]:
    if images.dtype == np.uint8:
        if given is not None or stored is not None:
            raise ValueError(f"images in {path} are bytes, whose range is known: leave value_range out")
        return (-1.0, 1.0)
    if images.dtype.kind != "f":
        raise ValueError(f"images in {path} must be uint8 or floats, got {images.dtype}")
    pair = given if given is not None else stored
    if pair is None:
        raise ValueError(
            f"images in {path} are floats of unstated range ({images.min():g} to {images.max():g} found): "
            "give value_range=(low, high), or store an array 'value_range' in the file"
        )
    if len(pair) != 2 or not float(pair[0]) < float(pair[1]):
        raise ValueError(f"value_range must be (low, high) with low < high, got {tuple(pair)}")
    low, high = float(pair[0]), float(pair[1])
    if not (images.min() >= low and images.max() <= high):  # written so that NaN fails too
        raise ValueError(f"images in {path} run from {images.min():g} to {images.max():g}, outside {low:g} to {high:g}")
    return low, high
