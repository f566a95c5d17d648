"""What lies below a folder of pictures: one walk for all that read folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.core.pictures import suffixes

NAMED = 10  # how many kinds of files are named before the rest are only counted
CAPTION = ".txt"  # of the caption beside a picture, in place of the picture's own suffix


@dataclass
class Found:
    """The pictures below a folder, in the order of their paths, and what else there was."""

    pictures: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)  # files that are no pictures
    hidden: int = 0  # files and folders whose names begin with a dot
    loops: int = 0  # links to a folder that they lie in
    closed: int = 0  # folders that may not be read

    def skipped(self, captions: bool = False) -> str:
        """What was left out, in words, "" for nothing. Captions are not left out where they are read."""
        beside = {path.with_suffix(CAPTION) for path in self.pictures} if captions else set()
        left = Counter(path.suffix.lower() or "without a suffix" for path in self.others if path not in beside)
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in left.most_common(NAMED))
        parts = [f"{left.total()} other files ({kinds})"] if left else []
        parts += [f"{self.hidden} hidden"] if self.hidden else []
        parts += [f"{self.loops} links in a circle"] if self.loops else []
        parts += [f"{self.closed} folders that cannot be opened"] if self.closed else []
        return ", ".join(parts)


def walk(folder: Path, inside: Sequence[tuple[int, int]] = ()) -> Iterator[tuple[Path, str]]:
    """All that lies below a folder, and what it is: "picture", "other", "hidden", "loop" or "closed".

    Symbolic links are followed, except to a folder that they lie in. What is hidden is not entered. `inside` identifies
    the folders around this one.
    """
    try:
        found = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield folder, "closed"
        return
    inside = (*inside, (found.st_dev, found.st_ino))
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            yield path, "hidden"
        elif entry.is_dir():
            at = path.stat()
            if (at.st_dev, at.st_ino) in inside:
                yield path, "loop"
            else:
                yield from walk(path, inside)
        else:
            yield path, "picture" if path.suffix.lower() in suffixes() and entry.is_file() else "other"


def has_pictures(folder: Path) -> bool:
    """Whether there is a picture below a folder."""
    return any(kind == "picture" for _, kind in walk(folder))


def found_below(folder: Path) -> Found:
    """Everything below a folder."""
    found = Found()
    for path, kind in walk(folder):
        if kind in ("picture", "other"):
            (found.pictures if kind == "picture" else found.others).append(path)
        else:
            found.hidden += kind == "hidden"
            found.loops += kind == "loop"
            found.closed += kind == "closed"
    found.pictures.sort()
    return found
