"""Pictures as they are handed in, and the span of deep greys."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.core.pictures import Deep, as_pictures, convert, depth, read, read_one, span_of, suffixes

RAMP = np.linspace(0, 1, 256).reshape(16, 16)


def saved(values, kind="tiff", **options):
    out = io.BytesIO()
    Image.fromarray(values).save(out, kind, **options)
    return io.BytesIO(out.getvalue())


def png16(values, bits=None):
    """A PNG of 16 bits by hand, with the significant bits that it states."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    kind = 2 if values.ndim == 3 else 0
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    body = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    said = chunk(b"sBIT", bytes([bits] * (3 if kind else 1))) if bits else b""
    data = chunk(b"IHDR", head) + said + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.parametrize(
    "values, span",
    [
        ((RAMP * 255).astype(np.uint16), (0, 255)),
        ((RAMP * 1000).astype(np.uint16), (0, 1023)),
        ((RAMP * 4095).astype(np.uint16), (0, 4095)),
        ((RAMP * 65535).astype(np.uint16), (0, 65535)),
        ((RAMP * (2**31 - 1)).astype(np.int32), (0, 2**31 - 1)),
        ((RAMP * 4095 - 100).astype(np.int32), (-100, 3995)),
        (RAMP.astype(np.float32), (0, 1)),
        ((2 * RAMP - 1).astype(np.float32), (-1, 1)),
        ((7.5 * RAMP).astype(np.float32), (0, 7.5)),
        (np.rint(4000 * RAMP).astype(np.float32), (0, 4095)),
    ],
)
def test_the_span_of_deep_greys_is_that_of_their_depth(values, span):
    found = depth(saved(values))
    assert span_of([found]) == span
    ramp = read(saved(values), "L", span=span_of([found]))
    truth = (values.astype(np.float64) - span[0]) / (span[1] - span[0])
    assert ramp.shape == (16, 16, 1) and np.abs(ramp[..., 0] / 255 - truth).max() < 1 / 255


def test_what_a_file_states_comes_before_its_largest_value():
    dark = (RAMP * 900).astype(np.uint16)
    assert depth(saved(dark)).stated is None
    assert span_of([depth(saved(dark, tiffinfo={281: 4095}))]) == (0, 4095)
    assert span_of([depth(png16(dark, 12))]) == (0, 4095) and span_of([depth(png16(dark))]) == (0, 1023)
    assert span_of([Deep(0, 900, True, None), Deep(0, 4000, True, None)]) == (0, 4095)  # one span for all
    assert depth(saved(np.zeros((4, 4), np.uint8), "png")) is None and depth(io.BytesIO(b"no picture")) is None


def test_colours_of_twelve_bits_in_sixteen_are_refused():
    colours = np.stack([RAMP] * 3, -1)
    assert "nearly black" in read(png16((colours * 4095).astype(np.uint16)), "RGB")
    assert read(png16((colours * 65535).astype(np.uint16)), "RGB").max() == 255


def test_one_picture_says_its_span(tmp_path):
    path = tmp_path / "scan.tif"
    path.write_bytes(saved((RAMP * 4095).astype(np.uint16)).getvalue())
    with pytest.warns(UserWarning, match=r"scan.tif: greys deeper than 8 bits: 0 was taken as black and 4095 as white"):
        assert read_one(path, "L").max() == 255
    path.write_bytes(saved((RAMP * 65535).astype(np.uint16)).getvalue())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_one(path, "RGB").shape == (16, 16, 3)
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"scan.tif cannot be read as a picture: cannot identify"):
        read_one(path, "L")


def test_whatever_is_a_picture_becomes_the_same_tensor(tmp_path):
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3
    image, shape = Image.fromarray(pixels), (3, 4, 6)
    image.save(tmp_path / "x.png")
    truth = torch.from_numpy(pixels).permute(2, 0, 1).float()[None] / 127.5 - 1
    for value in (
        truth[0],
        truth,
        truth[0].numpy(),
        pixels,
        image,
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        [image],
    ):
        torch.testing.assert_close(as_pictures(value, "init", shape), truth, atol=1e-6, rtol=0)
    both = as_pictures([image, truth[0]], "init", shape)
    assert both.shape == (2, *shape) and torch.allclose(both[0], both[1], atol=1e-6)
    grey = as_pictures(image.convert("L"), "init", (1, 4, 6), (0.0, 1.0))
    assert grey.shape == (1, 1, 4, 6) and 0 <= float(grey.min()) < float(grey.max()) <= 1
    assert as_pictures(pixels[..., 0], "init", (1, 4, 6)).shape == (1, 1, 4, 6)
    assert as_pictures(truth, "init", shape) is truth  # floats stay as they are


@pytest.mark.parametrize(
    "value, message",
    [
        (None, "init must be a tensor, an array, .* got NoneType"),
        (3, "init must be a tensor, an array, .* got int"),
        ("gone.png", "init names a file that does not exist: 'gone.png'"),
        ([], "init must be one picture or a list"),
        ([torch.zeros(3, 4, 6), 1.0], r"init\[1\] must be a tensor"),
        (torch.zeros(3, 4, 6, dtype=torch.int64), r"init must hold floats, or bytes \(uint8\), got torch.int64"),
        (np.zeros((3, 4, 6), np.int32), "init must hold floats, or bytes .* got int32"),
        (torch.zeros(3, 6, 4), r"init must have shape \(3, 4, 6\) or \(B, 3, 4, 6\), got \(3, 6, 4\)"),
        (Image.new("RGB", (5, 5)), r"init must have shape .* got \(3, 5, 5\)|got \(5, 5, 3\)"),
        (torch.full((3, 4, 6), 255.0), "init must lie within -1 to 1, got 255 to 255"),
        (torch.full((3, 4, 6), torch.nan), "init has values that are not finite"),
    ],
)
def test_what_is_refused_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        as_pictures(value, "init", (3, 4, 6))


def test_suffixes():
    assert {".png", ".jpg", ".jp2", ".tga", ".ico", ".avif"} <= suffixes() and not {".h5", ".eps", ".mpg"} & suffixes()


def test_modes_become_what_was_asked():
    red = Image.new("RGB", (2, 3), (255, 0, 0))
    assert np.asarray(convert(red.convert("P"), "RGB"))[0, 0].tolist() == [255, 0, 0]
    assert np.asarray(convert(Image.new("L", (2, 3), 7), "RGB")).tolist() == [[[7, 7, 7]] * 2] * 3
    half = Image.new("RGBA", (2, 3), (255, 0, 0, 51))  # one fifth red over white
    assert np.asarray(convert(half, "RGB"))[0, 0].tolist() == [255, 204, 204]
    assert np.asarray(convert(Image.new("RGBA", (2, 3), (0, 0, 0, 0)), "L")).tolist() == [[255] * 2] * 3
    deep = Image.fromarray(np.array([[0, 256, 65535]], np.uint16))
    assert np.asarray(convert(deep, "L")).tolist() == [[0, 1, 255]]
