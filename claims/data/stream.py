"""Claims of fewstep/data/stream.py."""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

import torch

from claims.common import Claim, Outcome, compared
from fewstep.data.digits import load
from fewstep.data.stream import Stream, open_stream

SHARDS, EACH = 9, 20


def _write(folder: Path) -> None:
    """The first digits as shards of PNG images and classes."""
    from PIL import Image

    images, labels = load("train")
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as tar:
            for row in range(shard * EACH, (shard + 1) * EACH):
                picture = io.BytesIO()
                Image.fromarray(((images[row, 0] + 1) * 127.5).round().byte().numpy()).save(picture, "png")
                for suffix, content in (("png", picture.getvalue()), ("cls", b"%d" % int(labels[row]))):
                    entry = tarfile.TarInfo(f"{row:05}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def _batches(stream: Stream, first: int) -> torch.Tensor:
    return torch.cat([stream.batch(seen, 40)[0] for seen in range(first, 400, 40)])


def _resume(seed: int) -> Outcome:
    """400 samples in batches of 40 at once, and stopped and opened again after 160."""
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder))
        whole, again = (open_stream(folder, mode="L", labels=True, seed=seed) for _ in range(2))
        straight = _batches(whole, 0)[160:]
        others = _batches(again, 160), _batches(again, 0)[: len(straight)]
    figures = [float((other - straight).abs().max()) for other in others]
    about = f"{SHARDS} shards of {EACH} digits, stopped after 160 of 400 samples"
    return compared(figures, "a stream that starts over", about, unit="largest difference of a pixel")


CLAIMS = (Claim("stream", "a stopped stream, resumed from the number of samples seen, gives the same bits", _resume),)
