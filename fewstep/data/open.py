"""Opening data by name, from a folder, or from a file: `open_data("digits")`, `open_data("pictures/", size=32)`.

What can be opened has a card: a built-in data set one of kind "data", `open(split, ...) -> Dataset`; folders and files
are read by those of kind "format", `open(path, ...)`, found by their fact "suffix" ("/" is a folder).
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from fewstep.core.errors import suggest
from fewstep.core.methods import Method, card, methods
from fewstep.data.dataset import Dataset
from fewstep.data.stream import Stream
from fewstep.data.walk import has_pictures

FOLDER = "/"


def is_built_in(name: object) -> bool:
    """Whether a data set of this name comes with the library."""
    return name in {method.name for method in methods("data")}


def open_built_in(name: str, split: str = "train", **options: Any) -> Dataset:
    """The data set of this name that comes with the library, even if a folder here has the same name.

    Raises ValueError for an unknown name, split or option.
    """
    return card(name, "data")[0].load()(split, **options)


def reader(source: str | Path) -> Method:
    """The card that opens a source.

    A folder with pictures comes before a built-in data set of the same name, since it is the user's own. Raises
    ValueError when nothing is there, or nothing can read it.
    """
    path, formats = Path(source), {method.facts["suffix"]: method for method in methods("format")}
    if is_built_in(str(source)) and not (path.is_dir() and has_pictures(path)):
        return card(str(source), "data")[0]
    if path.is_dir():
        return formats.pop(FOLDER)
    for suffix, method in formats.items():
        if suffix in path.name and (path.is_file() or method.facts.get("stream")):  # shards may be many, or remote
            return method
    if path.exists():
        endings = " or ".join(suffix for suffix in formats if suffix != FOLDER)
        raise ValueError(f"cannot read {str(path)!r} as data: give a folder of images, or a file with {endings}")
    if path.suffix or "/" in str(source):
        raise ValueError(f"no data at {str(path)!r}: there is no such file or folder")
    raise suggest("data", str(source), [method.name for method in methods("data")])


def described(source: str | Path) -> str:
    """What a source was taken to be: "the folder photographs", "the built-in photographs"."""
    found = reader(source)
    if found.kind == "data":
        return f"the built-in {source}"
    suffix = found.facts["suffix"]
    return f"the {'folder' if suffix == FOLDER else 'shards' if found.facts.get('stream') else 'file'} {source}"


def open_source(
    source: str | Path,
    *,
    split: str = "train",
    size: int | tuple[int, int] | None = None,
    mode: str = "RGB",
    labels: bool = False,
    captions: bool = False,
    value_range: tuple[float, float] | None = None,
    validation: float = 0.1,
    seed: int = 0,
) -> Dataset | Stream:
    """Anything that can be trained on: what `open_data` opens, and tar shards (`train-{0000..0127}.tar`).

    Arguments and errors are those of `open_data`.
    """
    found = reader(source)
    asked: dict[str, Any] = {
        "split": split,
        "size": size,
        "mode": mode,
        "labels": labels,
        "captions": captions,
        "value_range": value_range,
        "validation": validation,
        "seed": seed,
    }
    function = found.load()
    takes = inspect.signature(function).parameters
    for name, left_out in (("split", "train"), ("size", None), ("value_range", None)):
        if name not in takes and asked[name] != left_out:
            raise ValueError(f"{name}={asked[name]!r} does not apply to {described(source)}: leave it out")
    options = {name: value for name, value in asked.items() if name in takes}
    return function(**options) if found.kind == "data" else function(source, **options)


def open_data(source: str | Path, **options: Any) -> Dataset:
    """Opens a data set by name ("digits"; `fewstep methods --kind data` lists them), a folder of images, or an `.npz`.

    Args:
        split: "train", "validation" or "all".
        size: images of a folder are cropped to its aspect around the centre and resized to it (height and width, or
            one number).
        mode: "RGB" or "L" (grey), for folders.
        labels: the folder's first level of subfolders are the classes.
        captions: of a folder, `cat.txt` beside `cat.png`.
        value_range: the range of the floats in an `.npz`.
        validation, seed: the share held out and the permutation that chooses it (a built-in data set has a split of
            its own).

    A folder with pictures comes before a built-in data set of the same name. Raises ValueError when the source is none
    of these, or an argument does not apply to it.
    """
    if reader(source).facts.get("stream"):
        raise ValueError(f"{described(source)} are read in one order and have no rows: only training takes them")
    opened = open_source(source, **options)
    assert isinstance(opened, Dataset)
    return opened
