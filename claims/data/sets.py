"""Claims of the data sets and how they are read."""

from __future__ import annotations

import io
import tarfile
import tempfile
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claims.common import Claim, Outcome, compared, tolerance
from fewstep.data.captions import COLOURS, PLACES, RELATIONS, SHAPES, SIZES, Spec, Thing, detokenize, parse, tokenize
from fewstep.data.dataset import split_rows
from fewstep.data.digits import load
from fewstep.data.open import open_data
from fewstep.data.phantoms import coverage
from fewstep.data.shapes import STROKE, draw, held_out, scenes
from fewstep.data.shapes_render import BACKGROUND
from fewstep.data.stream import Stream, open_stream

PICTURES = 60
ROWS = 1000
SHARDS, EACH = 9, 20


def _every(seed: int) -> Outcome:
    things = [Thing(*words) for words in product(COLOURS, SHAPES, (None, *SIZES))]
    alone = [Spec((thing,), place) for thing in things for place in (None, *PLACES)]
    pairs = [Spec((one, two), None, relation) for one in things for two in things for relation in RELATIONS]
    wrong = 0
    for spec in alone + pairs:
        (again,) = detokenize(tokenize(spec.caption)[None])
        wrong += parse(again) != spec
    about = f"all {len(alone) + len(pairs)} sentences, to ids and back"
    return Outcome(wrong, 1, "demand", about, unit="sentences misread")


def _whole(seed: int) -> Outcome:
    """scikit-learn's digits that are not in exactly one split with their own label."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    source = torch.from_numpy(bunch.images).float()[:, None] / 8 - 1
    parts = [open_data("digits", split=split) for split in ("train", "validation")]
    images, labels = (torch.cat(every) for every in zip(*((part.images, part.labels) for part in parts), strict=True))
    keys = [
        sorted(image.numpy().tobytes() + bytes([int(label)]) for image, label in zip(*pair, strict=True))
        for pair in ((images, labels), (source, torch.from_numpy(bunch.target)))
    ]
    lost = sum(a != b for a, b in zip(*keys, strict=True))
    return Outcome(lost, 1, "demand", f"{len(source)} digits, pixels and labels compared bit by bit", unit="digits")


def _stays(seed: int) -> Outcome:
    """Picture k is grey k; then the first picture trained on is damaged."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as root:
        for number in range(PICTURES):
            Image.fromarray(np.full((4, 4), 4 * number, np.uint8)).save(Path(root) / f"{number:02}.png")

        def numbers(split: str) -> set[int]:
            data = open_data(root, split=split, mode="L", validation=0.2, seed=seed)
            return {int(value) // 4 for value in data.raw[:, 0, 0, 0]}

        held, broken = numbers("validation"), min(numbers("train"))
        (Path(root) / f"{broken:02}.png").write_bytes(b"broken")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = held & numbers("train")
    left = np.array([number for number in range(PICTURES) if number != broken])
    theirs = held & set(left[split_rows(len(left), "train", 0.2, seed)].tolist())
    about = f"{PICTURES} pictures, a fifth held out, one of the others damaged afterwards"
    against, unit = "a split of the pictures that can be read", "pictures held out before and trained on now"
    return Outcome(len(ours), len(theirs), against, about, unit=unit)


def _memory(seed: int) -> Outcome:
    pictures = np.random.default_rng(seed).integers(0, 256, (500, 8, 8, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as root:
        np.savez(Path(root) / "pictures.npz", images=pictures)
        data = open_data(Path(root) / "pictures.npz", split="all")
    figures, about = (data.raw.element_size(), data.images.element_size()), "500 colour pictures of 8x8 from bytes"
    return compared(figures, "the pictures as floats", about, unit="bytes a value in memory")


def _seen(held: Tensor, train: Tensor) -> float:
    """The share of patches held out whose left half is the right half of one trained on."""
    half = held.shape[3] // 2
    known = {patch[..., half:].contiguous().numpy().tobytes() for patch in train}
    return sum(patch[..., :half].contiguous().numpy().tobytes() in known for patch in held) / len(held)


def _apart(seed: int) -> Outcome:
    train, held = (open_data("photographs", split=split).images for split in ("train", "validation"))
    order = torch.randperm(len(train) + len(held), generator=torch.Generator().manual_seed(seed))
    mixed = torch.cat([train, held])[order]
    figures = _seen(held, train), _seen(mixed[len(train) :], mixed[: len(train)])
    about = f"{len(train)} patches of 32 pixels to train on, {len(held)} held out"
    return compared(
        figures, "patches dealt at random", about, unit="share of held-out patches of which half was trained on"
    )


def _held(seed: int) -> Outcome:
    rows = torch.arange(seed * ROWS, (seed + 1) * ROWS)
    shares = [sum(held_out(spec) for spec in scenes(rows, split)) / ROWS for split in ("train", "validation")]
    unit = "share of pictures with a combination that is held out"
    return compared(shares, "the validation split", f"{ROWS} rows of each split", unit=unit)


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


def _lines(seed: int) -> Outcome:
    """The share of what is drawn that lies outside of the same scene's filled shapes, or whose caption differs."""
    rows = torch.arange(seed, seed + 256)
    (lines, said), (filled, asked) = draw(rows, "train", STROKE), draw(rows, "train")
    lit = [(images - BACKGROUND).abs().amax(1) > 0.05 for images in (lines, filled)]
    wrong = float((lit[0] & ~lit[1]).sum() / lit[0].sum()) + float((said != asked).double().mean())
    assert lit[0].sum() < 0.9 * lit[1].sum()
    return tolerance(wrong, 1e-9, "256 scenes", "share of pixels and words that differ")


def _areas(seed: int) -> Outcome:
    """The error of an ellipse's area in 32x32 pixels, of soft edges and of pixels that are in or out."""
    generator = torch.Generator().manual_seed(seed)
    radii = 0.1 + 0.5 * torch.rand(200, 2, generator=generator, dtype=torch.float64)
    centre = 0.4 * torch.rand(200, 2, generator=generator, dtype=torch.float64) - 0.2
    share = coverage((32, 32), centre, radii, torch.zeros(200, dtype=torch.float64))
    wanted = torch.pi * radii.prod(1) / 4
    figures = [float(((one.mean((1, 2)) - wanted) / wanted).abs().mean()) for one in (share, (share > 0.5).double())]
    return compared(figures, "pixels in or out", "200 ellipses of 32x32", unit="relative error of the area")


CLAIMS = (
    Claim("phantoms", "their edges keep an ellipse's area", _areas),
    Claim("shapes-captions", "every sentence is read as what it was written from", _every),
    Claim("digits", "every digit of scikit-learn is in one split, to the bit, with its own label", _whole),
    Claim("folder", "what is held out stays held out when a picture is damaged", _stays),
    Claim("npz", "pictures stay in memory as the bytes that they were", _memory),
    Claim("photographs", "no patch held out was trained on in part", _apart),
    Claim("shapes", "no training picture shows a combination that is held out", _held),
    Claim("shapes-outline", "has the scenes and captions of shapes, and lines where those have areas", _lines),
    Claim("stream", "a stopped stream, resumed from the number of samples seen, gives the same bits", _resume),
)  # fmt: skip
