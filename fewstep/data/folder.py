"""Images from a folder, through Pillow."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fewstep.conditions.text import Text
from fewstep.core.errors import suggest
from fewstep.core.files import read_text
from fewstep.core.methods import Method
from fewstep.core.pictures import MODES, Deep, Span, read, say, span_of
from fewstep.data.dataset import Dataset, DataSpec, split_rows
from fewstep.data.walk import CAPTION, found_below

METHODS = (
    Method(
        "folder",
        kind="format",
        claim="every picture below a folder; held-out pictures stay held out even if another turns out broken",
        use="open_folder",
        facts={"suffix": "/"},
    ),
)

NAMED = 10  # how many broken files or sizes a message lists before it only counts


def open_folder(
    root: str | Path,
    split: str = "train",
    size: int | tuple[int, int] | None = None,
    mode: str = "RGB",
    labels: bool = False,
    captions: bool = False,
    validation: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """All images below `root`, in the order of their paths before the split permutes them.

    Symbolic links are followed, hidden files and folders are not entered. The split is drawn over files, so it does not
    change when one of them turns out to be broken. Transparent images are laid on white. Of several frames the first is
    read. Greys deeper than 8 bits share one span from black to white (`fewstep.core.pictures.span_of`), that of all
    files whatever the split; a warning says which, unless it is all of 16 bits. A broken image is skipped; one warning
    names the first ten and gives their number, and counts what else was left out.

    labels: the first level of subfolders are the classes. captions: `cat.txt` beside `cat.png` is its caption; the
    vocabulary is that of all captions, whatever the split, and a picture without one has an empty caption.

    Raises ValueError when there is no image, when none of the split can be read, when sizes differ and `size` is None;
    with `labels`, when an image lies outside every subfolder; with `captions`, when there are none.
    """
    root = Path(root)
    if mode not in MODES:
        raise suggest("mode", mode, MODES)
    target = (size, size) if isinstance(size, int) else size
    if target is not None and (len(target) != 2 or min(target) < 1):
        raise ValueError(f"size must be a positive number or (height, width), got {size!r}")
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    found = found_below(root)
    files, left = found.pictures, found.skipped(captions)
    if not files:
        raise ValueError(
            f"no images in {root} or below it: looked for what Pillow reads, such as .png, .jpg, .jpeg, .webp and .tif"
            + (f"; there are {left}" if left else "")
        )
    classes = _classes(root, files) if labels else ()
    notes = []
    if labels and (empty := _empty(root, classes)):
        notes.append(f"the subfolders {', '.join(empty)} hold no picture and are no classes")
    text = _Captions(files) if captions else None
    if text is not None and text.missing:
        notes.append(f"{text.missing} pictures have no caption and get an empty one")

    rows = [files[row] for row in split_rows(len(files), split, validation, seed)]
    results = _read(rows, mode, target)
    if deep := [row for row, result in enumerate(results) if isinstance(result, Deep)]:
        span = _span(files, rows, results)
        say(span, str(root), 3)
        for row, result in zip(deep, _read([rows[row] for row in deep], mode, target, span), strict=True):
            results[row] = result
    broken = [(path, result) for path, result in zip(rows, results, strict=True) if isinstance(result, str)]
    kept = [path for path, result in zip(rows, results, strict=True) if isinstance(result, np.ndarray)]
    images = [result for result in results if isinstance(result, np.ndarray)]
    named = "; ".join(f"{path.relative_to(root)} ({reason})" for path, reason in broken[:NAMED])
    if len(broken) > NAMED:
        named += f"; and {len(broken) - NAMED} more"
    if not images:
        raise ValueError(f"none of the {len(rows)} images in {root} could be read: {named}")
    told = [f"skipped {len(broken)} of {len(rows)} images in {root}: {named}"] if broken else []
    told += [f"skipped in {root}: {left}"] if left else []
    if told + notes:
        warnings.warn("; ".join(told + notes), stacklevel=3)
    _check_sizes(root, images)

    raw = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    index = {name: number for number, name in enumerate(classes)}
    numbers = torch.tensor([index[_class(root, path)] for path in kept]) if labels else None
    spec = DataSpec(root.resolve().name, tuple(raw.shape[1:]), (-1.0, 1.0), len(classes) or None, len(raw))
    given = {}
    if text is not None:
        spec, given = replace(spec, text=text.kind), {"text": text.tokens(kept)}
    return Dataset(spec, raw, numbers, classes, tuple(str(path.relative_to(root)) for path, _ in broken), given)


def _read(
    files: Sequence[Path], mode: str, size: tuple[int, int] | None, span: Span | None = None
) -> list[np.ndarray | Deep | str]:
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        return list(pool.map(lambda path: read(path, mode, size, span), files))


def _span(files: Sequence[Path], rows: Sequence[Path], results: Iterable[object]) -> Span:
    """Black and white of the deep greys of a folder: of all of its files, so that every split has the same."""
    rest = set(files).difference(rows)
    others = _read([path for path in files if path in rest], "L", None)
    return span_of(one for one in (*results, *others) if isinstance(one, Deep))


def _class(root: Path, path: Path) -> str:
    return path.relative_to(root).parts[0]


def _classes(root: Path, files: list[Path]) -> tuple[str, ...]:
    if loose := [path.name for path in files if path.parent == root]:
        raise ValueError(
            f"labels=True takes the subfolders of {root} as classes, but {len(loose)} images lie outside of them, "
            f"{loose[0]!r} first: move them, or leave labels out"
        )
    return tuple(sorted({_class(root, path) for path in files}))


def _empty(root: Path, classes: Sequence[str]) -> list[str]:
    """The subfolders that would be classes if they held a picture."""
    return sorted(
        path.name
        for path in root.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in classes
    )


class _Captions:
    """The captions beside pictures, and the vocabulary of all of them."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.text: dict[Path, str] = {}
        for path in files:
            beside = path.with_suffix(CAPTION)
            if beside.is_file():
                try:
                    self.text[path] = " ".join(read_text(beside).split())
                except UnicodeDecodeError:
                    raise ValueError(f"the caption {beside} is no text file (UTF-8)") from None
        if not any(self.text.values()):
            raise ValueError(
                f"captions=True reads the text in NAME{CAPTION} beside each picture, but none of {len(files)} pictures"
                f" has one: {files[0].with_suffix(CAPTION).name} would be that of {files[0].name}"
            )
        self.missing = sum(not self.text.get(path) for path in files)
        words = [text.lower().replace(",", " ").split() for text in self.text.values()]  # as `Text.tokens` reads them
        self.kind = Text(tuple(sorted({word for caption in words for word in caption})), max(map(len, words)))

    def tokens(self, files: Sequence[Path]) -> torch.Tensor:
        """The indices (N, length) of the files' captions."""
        return torch.tensor([self.kind.tokens(self.text.get(path, "")) for path in files])


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
