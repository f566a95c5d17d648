"""What makes a data set the same one: a fingerprint that a resumed run compares."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from fewstep.data.dataset import Dataset, Drawn
from fewstep.data.stream import Stream

FEW = 8  # samples that stand for data which are not in memory


def identity(data: Dataset | Stream) -> str:
    """A fingerprint of a data set: its pictures in their order, and what goes with them.

    All bytes that are in memory count, so that a picture which was replaced, or renamed and so moved in the order,
    changes it. Of data drawn on demand it is the first samples, of shards their names and numbers of samples too.
    """
    found = hashlib.blake2b(digest_size=16)
    found.update(repr((data.spec.shape, data.spec.value_range, data.spec.classes, data.spec.n)).encode())
    if isinstance(data, Stream):
        found.update(
            repr([(Path(shard).name, count) for shard, count in zip(data.shards, data.counts, strict=True)]).encode()
        )
        parts = [data.batch(0, min(FEW, len(data)))[0]]
    elif isinstance(data, Drawn):
        images, given = data.batch(torch.arange(min(FEW, len(data))))
        parts = [images, *given.values()]
    else:
        found.update(repr((data.class_names, sorted(data.given))).encode())
        parts = [
            data.raw,
            *([] if data.labels is None else [data.labels]),
            *(data.given[k] for k in sorted(data.given)),
        ]
    for part in parts:
        found.update(part.cpu().contiguous().numpy().data)
    return found.hexdigest()
