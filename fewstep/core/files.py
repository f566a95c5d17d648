"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import codecs
import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to fill, which takes the name `path` in one move once it is filled.

    The bytes go under a hidden name in the same folder, and are flushed to disk before the move; a failure on the way
    leaves the old file as it was and nothing else. The folder must exist.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Write bytes, or text as UTF-8 with its line ends as they are, to `path` in one move (`writing`); return it."""
    with writing(path) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)
    return Path(path)


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file: UTF-8, or UTF-16 where a byte-order mark says so; a mark is no part of the text.

    Raises:
        OSError: a file that cannot be read. UnicodeDecodeError: one that is no text.
    """
    data = Path(path).read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if wide else "utf-8-sig")


def claim_folder(folder: str | os.PathLike[str]) -> Path:
    """A folder to write into: absent or empty, and writable. `ValueError` otherwise."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; name a folder that does not exist yet")
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"the folder {path} is not empty: choose another, or remove it first")
    parent = path.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise ValueError(f"cannot write to {path}: {parent} is not a folder")
    if not os.access(path if path.is_dir() else parent, os.W_OK):
        raise ValueError(f"cannot write to {path}: no permission in {path if path.is_dir() else parent}")
    return path


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to fill beside `folder`, which takes its place once filled; after an error nothing is left.

    Raises:
        ValueError: as `claim_folder`.
    """
    path = claim_folder(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.is_dir():
            path.rmdir()
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
