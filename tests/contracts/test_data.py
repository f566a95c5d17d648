"""The contract of every data set and format: registered ones enter by themselves; a format by a writer named below."""

from __future__ import annotations

import inspect
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.core.methods import Method, methods
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.data.open import described, is_built_in, open_built_in, open_data, open_source, reader
from fewstep.data.stream import Stream

SETS, FORMATS = methods("data"), methods("format")
N, SIZE = 20, (4, 6)


def grey(number: int) -> np.ndarray:
    return np.full((*SIZE, 3), number, np.uint8)


def png(number: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(grey(number)).save(out, "png")
    return out.getvalue()


def folder(root: Path) -> Path:
    (root / "pictures").mkdir()
    for number in range(N):
        (root / "pictures" / f"{number:02}.png").write_bytes(png(number))
    return root / "pictures"


def npz(root: Path) -> Path:
    np.savez(root / "arrays.npz", images=np.stack([grey(number) for number in range(N)]))
    return root / "arrays.npz"


def tar(root: Path) -> Path:
    pytest.importorskip("webdataset")
    with tarfile.open(root / "shard.tar", "w") as file:
        for number in range(N):
            entry = tarfile.TarInfo(f"{number:02}.png")
            entry.size = len(png(number))
            file.addfile(entry, io.BytesIO(png(number)))
    return root / "shard.tar"


# The pictures 0 to N - 1, all of one grey each, as a source of each format.
WRITERS: dict[str, Callable[[Path], Path]] = {"/": folder, ".npz": npz, ".tar": tar}


def splits(card: Method) -> list[str]:
    """The splits that a data set has."""
    found = []
    for split in ("train", "validation", "all"):
        try:
            open_built_in(card.name, split)
        except ValueError:
            continue
        found.append(split)
    return found


def rows(data: Dataset) -> torch.Tensor:
    return torch.linspace(0, len(data) - 1, 40).long()


def named(cards: list[Method]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("card", cards, ids=lambda card: card.name)


@named(SETS)
def test_a_data_set_is_what_its_spec_says(card):
    assert splits(card)[:2] == ["train", "validation"]
    for split in splits(card):
        data = open_data(card.name, split=split)
        spec = data.spec
        assert spec.name == card.name and spec.n == len(data) > 100 and len(spec.shape) in (3, 4)
        images, labels = data[rows(data)]
        low, high = spec.value_range
        assert images.shape == (40, *spec.shape) and images.dtype == torch.float32
        assert low <= float(images.min()) < float(images.max()) <= high
        if split == "validation":
            assert 0 < data.std() < high - low
        assert (labels is None) == (spec.classes is None)


@named(SETS)
def test_a_batch_has_the_images_and_conditions_that_a_model_takes(card):
    data = open_data(card.name, split="validation")
    x0, given = data.batch(rows(data))
    assert torch.equal(x0, data[rows(data)][0])
    assert set(given) == {name for name, has in (("label", data.spec.classes), ("text", data.spec.text)) if has}
    kinds = {"label": Label(data.spec.classes or 1), "text": data.spec.text}
    for name, value in given.items():
        assert torch.equal(kinds[name].check(name, value, 40, torch.device("cpu")), value)
        assert int(value.max()) < (data.spec.classes or len(data.spec.text.vocabulary) + 1)
    few = data.batch(rows(data)[5:9])
    assert torch.equal(few[0], x0[5:9]) and all(torch.equal(few[1][name], given[name][5:9]) for name in given)


@named(SETS)
def test_a_split_is_the_same_every_time_and_shares_no_picture_with_the_other(card):
    train, again, held = (open_data(card.name, split=split) for split in ("train", "train", "validation"))
    assert torch.equal(train[rows(train)][0], again[rows(again)][0])

    def prints(data: Dataset) -> set[bytes]:
        images, given = data.batch(torch.arange(min(len(data), 500)))
        beside = [value.numpy() for value in given.values()]
        return {image.numpy().tobytes() + b"".join(b[i].tobytes() for b in beside) for i, image in enumerate(images)}

    assert not prints(train) & prints(held)


@named(SETS)
def test_a_data_set_refuses_other_splits_and_sizes(card):
    with pytest.raises(ValueError, match="unknown split 'tran': did you mean 'train'"):
        open_data(card.name, split="tran")
    with pytest.raises(ValueError, match=card.name):
        open_data(card.name, size=(5, 7))
    with pytest.raises(ValueError, match="value_range=.* does not apply to the built-in"):
        open_data(card.name, value_range=(0.0, 1.0))
    with pytest.raises(ValueError, match=f"unknown data '{card.name[:-1]}': did you mean '{card.name}'"):
        open_data(card.name[:-1])


@named(SETS)
def test_a_folder_of_pictures_comes_before_a_data_set_of_its_name(card, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert described(card.name) == f"the built-in {card.name}" and is_built_in(card.name)
    folder(tmp_path).rename(tmp_path / card.name)
    assert described(card.name) == f"the folder {card.name}"
    assert open_data(card.name, split="all").spec.shape == (3, *SIZE)
    assert open_built_in(card.name, "validation").spec.name == card.name  # a model's own data, whatever lies around
    for picture in (tmp_path / card.name).iterdir():
        picture.unlink()
    assert described(card.name) == f"the built-in {card.name}"  # a run's folder, say


def test_every_format_has_a_suffix_of_its_own_and_a_writer_here():
    suffixes = [card.facts["suffix"] for card in FORMATS]
    assert len(set(suffixes)) == len(suffixes) and set(suffixes) == set(WRITERS)


@named(FORMATS)
def test_a_format_reads_back_what_was_written(card, tmp_path):
    source = WRITERS[card.facts["suffix"]](tmp_path)
    assert reader(source) == card and described(source).endswith(str(source))
    for given in (source, str(source)):
        opened = open_source(given)
        assert opened.spec.shape == (3, *SIZE) and opened.spec.value_range == (-1.0, 1.0)
        assert opened.spec.classes is None
        if isinstance(opened, Stream):
            x0, beside = opened.batch(0, N)
            assert beside is None and len(opened) == N
        else:
            x0 = torch.cat([open_data(given, split=split).images for split in ("train", "validation")])
            assert len(opened) == N - 2 and torch.equal(open_data(given, split="all").images, x0)
        greys = ((x0 + 1) * 127.5).round()
        assert (greys == greys[:, :1, :1, :1]).all() and sorted(greys[:, 0, 0, 0].int().tolist()) == list(range(N))


@named(FORMATS)
def test_a_format_says_what_does_not_apply_to_it(card, tmp_path):
    source = WRITERS[card.facts["suffix"]](tmp_path)
    takes = inspect.signature(card.load()).parameters
    for name, value in (("split", "validation"), ("size", (4, 6)), ("value_range", (0.0, 1.0))):
        if name not in takes:
            with pytest.raises(ValueError, match=f"{name}=.* does not apply to the .*: leave it out"):
                open_source(source, **{name: value})
    if card.facts.get("stream"):
        with pytest.raises(ValueError, match="have no rows: only training takes them"):
            open_data(source)
    else:
        with pytest.raises(ValueError, match="unknown split 'tran': did you mean 'train'"):
            open_source(source, split="tran")


def test_what_goes_with_images_has_a_row_for_each():
    spec, zeros = DataSpec("pairs", (1, 2, 2), (-1.0, 1.0), None, 3), torch.zeros(3, 1, 2, 2)
    data = Dataset(spec, zeros, torch.tensor([0, 1, 2]), given={"y": torch.arange(3.0).view(3, 1, 1, 1)})
    x0, given = data.batch(torch.tensor([2, 0]))
    assert list(given) == ["label", "y"] and given["y"].flatten().tolist() == [2.0, 0.0] and len(x0) == 2
    with pytest.raises(ValueError, match="y has 2 rows, but there are 3 images"):
        Dataset(spec, zeros, given={"y": zeros[:2]})
