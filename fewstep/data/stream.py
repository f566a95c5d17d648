"""Images from shards: tar files of the webdataset kind, larger than memory, read from disk or over HTTP.

In a shard, files with the same stem make up a sample: `0042.png`, `0042.cls` (its class, a number from 0), `0042.txt`
(its caption). Opening reads every shard once and records which samples it holds; from then on the order depends only on
the seed and the number of samples seen, so that a stopped run continues where it was, reading no more than the shards
at that place.
"""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.pictures import MODES, Deep, Span, depth, read, say, span_of, suffixes
from fewstep.data.dataset import DataSpec, classes_of

METHODS = (
    Method(
        "stream",
        kind="format",
        claim="shuffled, endless, and resumed to the bit from the number of samples seen",
        use="open_stream",
        facts={"suffix": ".tar", "stream": True},
    ),
)

SHALLOW = {"jpg", "jpeg", "jfif", "jpe", "webp", "gif", "bmp", "avif"}  # pictures of bytes, whatever they hold
TOGETHER = 4  # shards that are in memory and shuffled among each other at a time
Sample = dict[str, Any]


@dataclass(eq=False)
class Stream:
    """Shards as an endless source. `batch(seen, count)` is a function of its arguments and the seed alone.

    An epoch takes every sample once: the shards in a random order, `TOGETHER` at a time, their samples permuted. A
    broken image is replaced by the next intact one in its shards; `skipped` holds the names of those found so far.
    """

    spec: DataSpec
    shards: tuple[str, ...]
    counts: tuple[int, ...]
    size: tuple[int, int]
    mode: str
    given: str | None  # "cls", "txt" or None: what goes with an image
    seed: int = 0
    span: Span | None = None  # black and white of greys deeper than bytes
    skipped: set[str] = field(default_factory=set)
    _first: int = 0  # the place of the first sample of those in memory
    _samples: list[Sample] = field(default_factory=list)

    def __len__(self) -> int:
        return self.spec.n

    def batch(self, seen: int, count: int) -> tuple[Tensor, Tensor | list[str] | None]:
        """The next `count` samples after the first `seen`: images (count, C, H, W) in -1 to 1, and their classes
        (count,) int64, their captions, or None.

        Raises ValueError when shards have changed since they were opened, or no longer hold an intact image.
        """
        images, others = [], []
        for place in range(seen, seen + count):
            image, other = self._at(place)
            images.append(image)
            others.append(other)
        raw = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        x0 = raw.float().mul_(2 / 255).sub_(1).contiguous()
        if self.given is None:
            return x0, None
        return x0, torch.tensor([int(other) for other in others]) if self.given == "cls" else others

    def _at(self, place: int) -> tuple[np.ndarray, str]:
        if not 0 <= place - self._first < len(self._samples):
            self._load(place)
        held = len(self._samples)
        for step in range(held):
            sample = self._samples[(place - self._first + step) % held]
            image = _decode(sample, self.mode, self.size, self.span)
            if image is not None:
                return image, sample["other"]
            self.skipped.add(sample["name"])
        raise ValueError(f"none of the {held} images beside {sample['name']} is intact")

    def _load(self, place: int) -> None:
        """Reads the shards of a place into memory, their samples permuted."""
        epoch, rest = divmod(place, self.spec.n)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))
        for block in range(0, len(order), TOGETHER):
            chosen = order[block : block + TOGETHER]
            held = sum(self.counts[shard] for shard in chosen)
            if rest < held:
                break
            rest -= held
        samples = [sample for shard in chosen for sample in _read(self.shards[shard], self.given)]
        if len(samples) != held:
            names = ", ".join(self.shards[shard] for shard in chosen)
            raise ValueError(f"{names} held {held} samples when opened and {len(samples)} now: open the data again")
        mixed = np.random.default_rng([self.seed, epoch, block]).permutation(held)
        self._first, self._samples = place - rest, [samples[number] for number in mixed]


def open_stream(
    shards: str | Path | Sequence[str | Path],
    size: int | tuple[int, int] | None = None,
    mode: str = "RGB",
    labels: bool = False,
    captions: bool = False,
    seed: int = 0,
) -> Stream:
    """Opens tar shards (needs the package webdataset: `pip install 'fewstep[stream]'`).

    shards: a folder of .tar files, a path or URL (http, https), one with braces (`train-{0000..0127}.tar`), or a list.
    size, mode: as for a folder of images; without a size that of the first intact image, to which the others are
    cropped and resized. labels: classes from .cls; captions: texts from .txt; samples without them are left out, and a
    warning says how many. Greys deeper than 8 bits share one span from black to white, as in a folder.

    Raises ValueError for a missing package, no shards, a shard that is not a tar file, and no usable image.
    """
    if mode not in MODES:
        raise suggest("mode", mode, MODES)
    if labels and captions:
        raise ValueError("a stream gives labels or captions, not both: leave one of them out")
    given = "cls" if labels else "txt" if captions else None
    found = _expand(shards)
    counts, present, deep, left, first = [], set[int](), list[Deep](), [0], None
    target = (size, size) if isinstance(size, int) else size
    if target is not None and (len(target) != 2 or min(target) < 1):
        raise ValueError(f"size must be a positive number or (height, width), got {size!r}")
    for shard in found:
        counts.append(0)
        for sample in _read(shard, given, left):
            counts[-1] += 1
            if labels:
                present.add(int(sample["other"]))
            if sample["suffix"] not in SHALLOW and (here := depth(io.BytesIO(sample["bytes"]))) is not None:
                deep.append(here)
            if first is None:
                first = _decode(sample, mode, target, (0.0, 1.0))
    wanted = {None: "", "cls": " with a .cls beside it", "txt": " with a .txt beside it"}[given]
    if first is None:
        raise ValueError(
            f"no usable image{wanted} in {len(found)} shards, {found[0]} first: looked for what Pillow reads"
        )
    if left[0]:
        warnings.warn(f"left out {left[0]} samples in {found[0]} and so on: no image{wanted}", stacklevel=3)
    span = span_of(deep) if deep else None
    if span is not None:
        say(span, found[0], 3)
    kept = [(shard, count) for shard, count in zip(found, counts, strict=True) if count]
    shape = (MODES[mode], *first.shape[:2])
    spec = DataSpec(
        Path(found[0]).stem, shape, (-1.0, 1.0), classes_of(present, found[0]) if labels else None, sum(counts)
    )
    shards_kept, counts_kept = zip(*kept, strict=True)
    return Stream(spec, shards_kept, counts_kept, first.shape[:2], mode, given, seed, span)


def _expand(shards: str | Path | Sequence[str | Path]) -> list[str]:
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise ValueError("reading shards needs the package webdataset: pip install 'fewstep[stream]'") from None
    given = [shards] if isinstance(shards, str | Path) else list(shards)
    found: list[str] = []
    for entry in map(str, given):
        if Path(entry).is_dir():
            found += sorted(str(path) for path in Path(entry).glob("*.tar") if not path.name.startswith("."))
        else:
            found += [entry] if Path(entry).exists() else expand_urls(entry)
    if not found:
        raise ValueError(
            f"no shards: there is no .tar file in {', '.join(map(repr, map(str, given))) or 'an empty list'}"
        )
    for shard in found:
        remote = shard.startswith(("http://", "https://"))
        if not remote and ":" in shard.split("/")[0]:  # webdataset would hand "pipe:..." to a shell
            raise ValueError(f"shards are files or http(s) URLs, got {shard!r}")
        if not remote and not Path(shard).is_file():
            raise ValueError(f"no shard at {shard!r}: there is no such file")
    return found


def _read(shard: str, given: str | None, left: list[int] | None = None) -> Iterator[Sample]:
    """A shard's samples that have an image and the label or caption wanted, in order: name, suffix, bytes, text.
    `left` counts the others."""
    from webdataset.tariterators import group_by_keys, tar_file_expander, url_opener

    images = tuple(sorted(suffix[1:] for suffix in suffixes()))
    wanted = {*images, *([given] if given else [])}
    try:
        files = tar_file_expander(url_opener([{"url": shard}]))
        for sample in group_by_keys(files, suffixes=wanted):
            suffix = next((suffix for suffix in images if suffix in sample), None)
            other = sample.get(given, b"").decode("utf-8-sig", "replace").strip() if given else ""
            if suffix is None or (given and not other) or (given == "cls" and not other.isdecimal()):
                if left is not None:
                    left[0] += 1
                continue
            name = f"{Path(shard).name}/{sample['__key__']}"
            yield {"name": name, "suffix": suffix, "bytes": sample[suffix], "other": other}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"cannot read {shard} as a tar file: {error.args[0] if error.args else error}") from None


def _decode(sample: Sample, mode: str, size: tuple[int, int] | None, span: Span | None) -> np.ndarray | None:
    """The image as (H, W, C) bytes, or None for a broken one."""
    found = read(io.BytesIO(sample["bytes"]), mode, size, span)
    return found if isinstance(found, np.ndarray) else None
