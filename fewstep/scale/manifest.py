"""A folder of shards and its manifest: what the job is, which shards are there, and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.core.files import claim_folder, write
from fewstep.scale.shards import Done, Lost, Shard, cut

FORMAT, FILE, LOCK = "fewstep shards 1", "manifest.json", ".lock"
NAMED = 3  # differences that a refusal names


class Shards:
    """The samples of a job on disk, one `.npy` a shard, and `manifest.json` beside them.

    A shard's file is written under another name and renamed, then the manifest is replaced: a process that is killed
    at any point leaves shards that are whole and listed, or not there. The manifest is one process's own while it
    draws (`locked`).

    Args:
        folder: absent, empty, or that of the same job.
        job: what was asked for, as JSON: all that the samples depend on.
        total, batch, batches: as `fewstep.scale.shards.cut` takes them. `batches` None is what the folder has.

    Attributes:
        about: what the workers said they are, or None before the first has; a further job must find the same.
        lost: deaths of workers, by shard.

    Raises:
        ValueError: another job's folder, naming what differs, and a manifest that cannot be read.
    """

    def __init__(
        self, folder: str | Path, job: Mapping[str, Any], total: int, batch: int, batches: int | None = None
    ) -> None:
        self.folder = Path(folder)
        self.job = json.loads(json.dumps(dict(job)))
        self.about: dict[str, Any] | None = None
        self.lost: list[dict[str, Any]] = []
        self._done: dict[int, dict[str, Any]] = {}
        self.shards = cut(total, batch, batches)
        self.total, self.batch = total, batch
        if (self.folder / FILE).is_file():
            self._resume(batches)
        else:
            claim_folder(self.folder)

    def _resume(self, batches: int | None) -> None:
        found = read_manifest(self.folder)
        asked = self.job | {"n": self.total, "batch_size": self.batch}
        there = found["job"] | {"n": found["total"], "batch_size": found["batch"]}
        self._check(there, asked)
        if batches is None:
            self.shards = cut(self.total, self.batch, found["batches"])
        else:
            self._check({"batches of a shard": found["batches"]}, {"batches of a shard": batches})
        self.about, self.lost = found["about"], found["lost"]
        for entry in found["shards"]:
            shard = self.shards[entry["number"]]
            if (entry["begin"], entry["end"]) != (shard.begin, shard.end):
                raise ValueError(f"{self.folder / FILE} is damaged: shard {shard.number} is not where it should be")
            if _checksum(self.folder / entry["file"]) == entry["sha256"]:  # else it is drawn again
                self._done[shard.number] = entry

    def _check(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        """`ValueError` that names what differs between the folder's job and this one."""
        found = differences(there, here)
        if found:
            more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
            raise ValueError(
                f"{self.folder} holds shards of another job: {'; '.join(found[:NAMED])}{more}. "
                "Ask for the same, or remove that folder"
            )

    def agree(self, about: Mapping[str, Any]) -> None:
        """Take what a worker is, or `ValueError` where it is not what the shards were drawn by."""
        found: dict[str, Any] = json.loads(json.dumps(dict(about)))
        if self.about is None:
            self.about = found
            self._write()
        self._check(self.about, found)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """While inside, no other process may draw into the folder; the lock dies with the process.

        Raises:
            ValueError: another process has it.
        """
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOCK, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(f"another process is drawing the shards in {self.folder}: wait for it") from None
            yield

    @property
    def missing(self) -> list[Shard]:
        """The shards that are not there, in order."""
        return [shard for shard in self.shards if shard.number not in self._done]

    @property
    def facts(self) -> list[dict[str, Any]]:
        """What the manifest says of each shard that is there, in order."""
        return [self._done[number] for number in sorted(self._done)]

    def add(self, done: Done) -> None:
        """Write a shard `(rows, *shape)`, float32, and list it."""
        values: np.ndarray = done.value
        if values.dtype != np.float32 or len(values) != len(done.shard):
            raise ValueError(f"shard {done.shard.number} is of {len(done.shard)} float32 rows, got {values.shape}")
        if done.shard.number in self._done:
            raise ValueError(f"shard {done.shard.number} was drawn twice")
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        data, name = buffer.getvalue(), f"{done.shard.number:06d}.npy"
        write(self.folder / name, data)
        shard = done.shard
        self._done[shard.number] = {
            "number": shard.number,
            "begin": shard.begin,
            "end": shard.end,
            "file": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "worker": done.worker,
            **done.facts,
        }
        self._write()

    def lose(self, lost: Lost) -> None:
        """List a worker's death."""
        self.lost.append({"shard": lost.shard.number, "worker": lost.worker, "why": lost.why})
        self._write()

    def _write(self) -> None:
        size = len(self.shards[0])
        facts = {
            "format": FORMAT,
            "job": self.job,
            "about": self.about,
            "total": self.total,
            "batch": self.batch,
            "batches": -(-size // self.batch),
            "shards": self.facts,
            "lost": self.lost,
        }
        write(self.folder / FILE, json.dumps(facts, indent=1) + "\n")

    def check(self) -> None:
        """`ValueError` unless every sample is there once."""
        at = 0
        for entry in self.facts:
            if entry["begin"] != at:
                first, last = sorted((at, entry["begin"]))
                raise ValueError(f"samples {first} to {last - 1} are not there once")
            at = entry["end"]
        if at != self.total:
            raise ValueError(f"{at} of {self.total} samples are there")

    @property
    def shape(self) -> tuple[int, ...]:
        """`(total, *sample)`."""
        first = np.load(self.folder / self.facts[0]["file"], mmap_mode="r", allow_pickle=False)
        return (self.total, *first.shape[1:])

    def __iter__(self) -> Iterator[Tensor]:
        """The samples in order, a shard `(rows, *shape)` at a time, each held against its checksum.

        Raises:
            ValueError: a shard that is missing or was changed.
        """
        self.check()
        for entry in self.facts:
            data = (self.folder / entry["file"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise ValueError(f"{self.folder / entry['file']} was changed: it does not have the manifest's checksum")
            yield torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False))

    def remove(self) -> None:
        """Remove the folder: its samples are elsewhere now."""
        shutil.rmtree(self.folder)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a folder of shards.

    Raises:
        ValueError: none there, or one that is damaged.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise ValueError(f"there is no {path}")
    try:
        found = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path} is not a manifest of shards ({FORMAT!r})")
    return found


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two descriptions, in words: "seed is 1 there and 0 here"."""
    found: list[str] = []
    for key in dict.fromkeys([*there, *here]):
        a, b = there.get(key), here.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} is {_short(a)} there and {_short(b)} here")
    return found


def _short(value: Any) -> str:
    text = "not given" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:36]} ..."


def _checksum(path: Path) -> str | None:
    """Of a file; None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def parts_of(samples: Tensor | Shards, rows: int = 256) -> Sequence[Tensor] | Shards:
    """Samples a part at a time, whether they are in memory or in shards."""
    return samples.split(rows) if isinstance(samples, Tensor) else samples
