"""`fs.encode(model, pictures)`: pictures in few bits, which the same model makes pictures of again."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core import noise
from fewstep.core.arguments import check_whole, checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.files import write
from fewstep.core.identity import identity
from fewstep.core.methods import card, made
from fewstep.core.pictures import as_pictures, data_shape
from fewstep.operators.operator import LinearOperator, Operator
from fewstep.restoration.measured import check_pair, in_coordinates

MAGIC, VERSION = b"fsc\n", 1
# Magic, version, the bytes that follow and their checksum; of these the first eight tell the model.
HEAD = struct.Struct("<4sBQ8s")
ABOUT = struct.Struct("<8sH")  # the model, and the length of what is said of the pictures


@dataclass(frozen=True)
class Compressed:
    """Pictures in few bits.

    Args:
        method, options: the codec and its options. condition: what the model is conditioned on.
        pictures: how many. model: which model's (`fewstep.core.identity`). payload: the bits.
    """

    method: str
    options: Mapping[str, Any]
    pictures: int
    model: str
    payload: bytes
    condition: Mapping[str, Any] = field(default_factory=dict)
    noise: int = noise.VERSION

    @property
    def bits(self) -> int:
        """Of all pictures together, in whole bytes; what a file says of itself besides is not counted."""
        return 8 * len(self.payload)

    def to_bytes(self) -> bytes:
        """The file: magic, version, length and checksum; then the model, the method, and the bits."""
        about = {name: getattr(self, name) for name in ("method", "options", "pictures", "condition", "noise")}
        text = json.dumps(about, separators=(",", ":")).encode()
        body = ABOUT.pack(bytes.fromhex(self.model), len(text)) + text + self.payload
        return HEAD.pack(MAGIC, VERSION, len(body), _checksum(body)) + body

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file, in one move."""
        return write(path, self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "this") -> Compressed:
        """From the bytes of a file; `where` is what messages call it.

        Raises:
            ValueError: other bytes, those of another version, some that are missing or were changed.
        """
        if not data.startswith(MAGIC[: len(data) or 1]):
            raise ValueError(f"{where} holds no compressed pictures: 'fewstep encode' and fs.encode make such files")
        if len(data) < HEAD.size:
            raise ValueError(f"{where} was cut short: {len(data)} bytes are not even its head")
        _, version, length, checksum = HEAD.unpack_from(data)
        if version != VERSION:
            raise ValueError(f"{where} is of version {version} of its format, and version {VERSION} is read here")
        body = data[HEAD.size :]
        if len(body) < length:
            raise ValueError(f"{where} was cut short: it has {len(data)} of {HEAD.size + length} bytes")
        if _checksum(body) != checksum:
            raise ValueError(f"{where} was damaged: it does not have the checksum that it states")
        model, size = ABOUT.unpack_from(body)
        about = json.loads(body[ABOUT.size : ABOUT.size + size])
        return cls(model=model.hex(), payload=body[ABOUT.size + size :], **about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Compressed:
        """From a file; `ValueError` as `from_bytes`, and for one that cannot be read."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        return cls.from_bytes(data, str(path))


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=8).digest()


@checked
def encode(
    model: Denoiser,
    pictures: Tensor,
    method: str = "ddcm",
    *,
    operator: Operator | None = None,
    options: Mapping[str, Any] | None = None,
    batch_size: int = 256,
    **condition: Any,
) -> Compressed:
    """Pictures `(B, *shape)` in few bits: `.bits` of them, `.save(path)`, and `fs.decode` to have pictures again.

    Args:
        pictures: as the model's data are; with an operator, measurements `(B, *measured)`.
        method, options: "ddcm" or "relic" (`fewstep methods --kind codec`), and its options.
        operator: what was done to the pictures, linear. What is decoded is restored; "ddcm" can do that.
        batch_size: pictures at once; to decode bit for bit, it is the same on both sides.
        **condition: what the model is conditioned on, as numbers or text, one for all or a list of one for each: it
            goes into the file.

    Raises:
        ValueError: pictures, an operator, a method or an option that does not fit; conditions of other kinds.
    """
    codec = made("codec", method, **(options or {}))()
    if model.shape is None:
        raise ValueError("this model takes any shape: a codec needs one that is known")
    own = _written(condition)
    seen: LinearOperator | None = None
    if operator is not None:
        if not card(method, "codec")[0].facts.get("restores"):
            raise ValueError(f"{method!r} compresses pictures as they are: 'ddcm' takes an operator")
        check_pair(model, operator)
        if not isinstance(operator, LinearOperator):
            raise ValueError(f"{method!r} takes a linear operator, and {operator} is none")
        inside = in_coordinates(operator, model)
        assert isinstance(inside, LinearOperator)
        seen = inside
        states = operator.received(operator.check_measurement(pictures, "pictures")).float()
    else:
        x = as_pictures(pictures, "pictures", data_shape(model) or model.shape, model.value_range).to(model.device)
        named = model.check_condition(own, len(x), model.device)
        states = model.encode(x.float(), **named)
    if not len(states):
        raise ValueError("there are no pictures to compress")
    if not bool(torch.isfinite(states).all()):
        raise ValueError("pictures has values that are not finite")
    payload = codec.encode(model, states, seen, own, check_whole("batch_size", batch_size))
    return Compressed(method, dict(options or {}), len(states), identity(model), payload, own)


@checked
def decode(model: Denoiser, compressed: Compressed | str | os.PathLike[str], *, batch_size: int = 256) -> Tensor:
    """The pictures `(B, *shape)`, as data, of what `fs.encode` made with the same model, or of its file.

    Raises:
        ValueError: as `Compressed.load`; what was made with another model, or with other numbers for a seed.
    """
    where = "this" if isinstance(compressed, Compressed) else str(compressed)
    held = compressed if isinstance(compressed, Compressed) else Compressed.load(compressed)
    if held.model != (own := identity(model)):
        raise ValueError(f"{where} was compressed with another model ({held.model}) than this one ({own})")
    if held.noise != noise.VERSION:
        raise ValueError(f"{where} is of version {held.noise} of the noise of a seed, and here it is {noise.VERSION}")
    codec = made("codec", held.method, **held.options)()
    rows = check_whole("batch_size", batch_size)
    states = codec.decode(model, held.payload, held.pictures, held.condition, rows)
    named = model.check_condition(held.condition, held.pictures, model.device)
    return model.decode(states, **named)


def _written(condition: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions as JSON; `ValueError` for what a file does not hold."""
    told = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in condition.items()}
    try:
        return json.loads(json.dumps(told))  # type: ignore[no-any-return]
    except TypeError:
        raise ValueError(f"conditions that go into a file are numbers or text, got {condition!r}") from None


def batches(
    model: Denoiser, count: int, condition: Mapping[str, Any], rows: int
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """The samples in batches of so many, each with its conditions as tensors."""
    named = model.check_condition(condition, count, model.device)
    for first in range(0, count, rows):
        part = slice(first, min(first + rows, count))
        yield part, {name: value[part] for name, value in named.items()}
