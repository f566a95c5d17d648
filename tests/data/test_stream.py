"""The stream of shards: what it gives, in which order, and what it does with what is broken."""

from __future__ import annotations

import io
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data.stream import TOGETHER, open_stream

pytest.importorskip("webdataset")


def picture(value: int, size=(4, 5)) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(out, "png")
    return out.getvalue()


def write(path, samples) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    """Seven shards of 1 to 7 samples; image k is grey k, its class k % 3, its caption "number k"."""
    k = 0
    for shard in range(7):
        files = []
        for _ in range(shard + 1):
            files += [(f"{k:04}.png", picture(k)), (f"{k:04}.cls", b"%d" % (k % 3)), (f"{k:04}.txt", b"number %d" % k)]
            k += 1
        write(tmp_path / f"part-{shard:02}.tar", files)
    return tmp_path


def values(x0):
    """The grey of each image, which is its number."""
    assert (x0 == x0[:, :1, :1, :1]).all()
    return ((x0[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_an_epoch_takes_every_sample_once_and_the_next_another_way(shards):
    stream = open_stream(shards, labels=True)
    assert stream.spec.shape == (3, 4, 5) and stream.spec.classes == 3 and stream.spec.n == len(stream) == 28
    assert stream.spec.value_range == (-1.0, 1.0) and len(stream.shards) > TOGETHER
    x0, label = stream.batch(0, 56)
    assert x0.dtype == torch.float32 and label.dtype == torch.int64
    found = values(x0)
    assert sorted(found[:28]) == sorted(found[28:]) == list(range(28)) and found[:28] != found[28:]
    assert found[:28] != sorted(found[:28]) and label.tolist() == [k % 3 for k in found]


def test_a_run_goes_on_from_the_number_of_samples_seen(shards):
    whole = open_stream(shards, seed=3).batch(0, 70)[0]
    parts = [open_stream(shards, seed=3).batch(seen, 10)[0] for seen in range(0, 70, 10)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(open_stream(shards, seed=4).batch(0, 70)[0], whole)


def test_captions_sizes_and_braces(shards):
    stream = open_stream(str(shards / "part-{02..03}.tar"), size=(6, 2), mode="L", captions=True)
    x0, captions = stream.batch(7, 7)
    assert x0.shape == (7, 1, 6, 2) and captions == [f"number {k}" for k in values(x0)]
    assert stream.spec.n == 7 and sorted(values(x0)) == list(range(3, 10))


def test_broken_images_are_skipped_and_counted_and_the_order_stays(shards):
    whole = open_stream(shards, seed=1).batch(0, 28)[0]
    files = [(f"{k:04}.png", picture(k)[: 40 if k == 12 else None]) for k in range(10, 15)]
    write(shards / "part-04.tar", [*files, ("9999.json", b"{}"), ("alone.cls", b"1")])
    stream = open_stream(shards, seed=1)
    x0 = stream.batch(0, 28)[0]
    assert len(stream) == 28 and stream.skipped == {"part-04.tar/0012"}
    before, after = values(whole), values(x0)
    assert [b for b, a in zip(before, after, strict=True) if a != b] == [12] and 12 not in after
    again = open_stream(shards, seed=1)
    place = before.index(12)
    assert torch.equal(again.batch(place, 1)[0], x0[place : place + 1])  # alone as in its batch


def test_clear_errors(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no shards"):
        open_stream(tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        open_stream(tmp_path / "none.tar")
    with pytest.raises(ValueError, match="files or http"):
        open_stream("pipe:cat x.tar")
    write(tmp_path / "a.tar", [("x.txt", b"words"), ("y.png", b"no image")])
    with pytest.raises(ValueError, match="no usable image"):
        open_stream(tmp_path)
    with pytest.raises(ValueError, match="not both"):
        open_stream(tmp_path, labels=True, captions=True)
    (tmp_path / "b.tar").write_bytes(b"neither a tar file nor anything else" * 100)
    with pytest.raises(ValueError, match=r"cannot read .*b.tar as a tar file"):
        open_stream(tmp_path / "b.tar")
    write(tmp_path / "a.tar", [("y.png", picture(1)), ("z.png", picture(2))])
    stream = open_stream(tmp_path / "a.tar")
    write(tmp_path / "a.tar", [("y.png", picture(1))])
    with pytest.raises(ValueError, match="held 2 samples when opened and 1 now"):
        stream.batch(0, 1)
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(ValueError, match=r"fewstep\[stream\]"):
        open_stream(tmp_path)


def test_gaps_marks_deep_greys_and_what_is_left_out_are_said(tmp_path):
    def deep(top):
        out = io.BytesIO()
        Image.fromarray(np.linspace(0, top, 20).reshape(4, 5).astype(np.uint16)).save(out, "tiff")
        return out.getvalue()

    files = [
        ("a.tif", deep(900)),
        ("a.cls", b"1"),
        ("b.tif", deep(4095)),
        ("b.cls", b"\xef\xbb\xbf3"),
        ("c.tif", deep(7)),
    ]
    write(tmp_path / "part.tar", [*files, ("c.cls", b"cat")])
    with pytest.warns(UserWarning) as caught:
        stream = open_stream(tmp_path, mode="L", labels=True)
    said = " | ".join(str(warning.message) for warning in caught)
    assert "left out 1 samples" in said and "4 classes, 2 of them without" in said and "4095 as white" in said
    x0, label = stream.batch(0, 2)
    white = ((x0 + 1) * 127.5).amax((1, 2, 3)).round().int().tolist()
    assert dict(zip(label.tolist(), white, strict=True)) == {1: 56, 3: 255}
