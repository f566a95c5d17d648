from __future__ import annotations

import numpy as np
import pytest
import torch

from fewstep.data import digits
from fewstep.data.dataset import Dataset, DataSpec, frames_of, split_rows
from fewstep.data.open import open_data


def test_digits_by_name():
    data = open_data("digits", split="validation")
    assert data.spec == DataSpec("digits", (1, 8, 8), (-1.0, 1.0), 10, 360)
    images, labels = digits.load("validation")
    assert torch.equal(data.images, images) and torch.equal(data.labels, labels) and len(data) == 360
    rows = torch.tensor([5, 0, 77])
    assert torch.equal(data[rows][0], images[rows]) and torch.equal(data[rows][1], labels[rows])
    assert open_data("digits", size=8).spec.n == 1437


def test_bytes_become_the_range_end_to_end():
    raw = torch.arange(256, dtype=torch.uint8).view(2, 1, 8, 16)
    data = Dataset(DataSpec("ramp", (1, 8, 16), (-1.0, 3.0), None, 2), raw)
    images, labels = data[torch.tensor([1, 0])]
    assert labels is None and images.dtype == torch.float32
    expected = torch.linspace(-1, 3, 256).view(2, 1, 8, 16)
    assert torch.allclose(images, expected.flip(0), atol=1e-6)
    assert images.max() == 3 and images.min() == -1


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_std_is_that_of_the_values(kind):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (5000, 1, 2, 3), generator=generator).to(kind)
    data = Dataset(DataSpec("noise", (1, 2, 3), (-1.0, 1.0), None, 5000), raw)
    assert data.std() == pytest.approx(float(data.images.double().std(correction=0)), rel=1e-6)


def test_splits_part_the_samples_and_repeat():
    train, held = split_rows(50, "train", 0.2, 3), split_rows(50, "validation", 0.2, 3)
    assert len(held) == 10 and sorted([*train, *held]) == list(range(50))
    assert np.array_equal(train, split_rows(50, "train", 0.2, 3))
    assert not np.array_equal(train, split_rows(50, "train", 0.2, 4))
    assert np.array_equal(split_rows(50, "all", 0.2, 3), [*train, *held])


@pytest.mark.parametrize(
    "source, arguments, message",
    [
        ("digts", {}, "unknown data 'digts': did you mean 'digits'"),
        ("digits", {"split": "valid"}, "unknown split 'valid': did you mean 'validation'"),
        ("digits", {"size": 16}, "digits comes as 8x8, not as 16"),
        ("no/such/folder", {}, "there is no such file or folder"),
        ("missing.npz", {}, "there is no such file or folder"),
    ],
)
def test_wrong_sources_raise(source, arguments, message):
    with pytest.raises(ValueError, match=message):
        open_data(source, **arguments)


def test_other_files_and_misplaced_arguments_raise(tmp_path):
    (tmp_path / "data.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match="give a folder of images, or a file with .npz or .tar"):
        open_data(tmp_path / "data.pt")
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"value_range=\(0, 1\) does not apply to the folder"):
        open_data(tmp_path, value_range=(0, 1))
    np.savez(tmp_path / "a.npz", images=np.zeros((9, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="size=8 does not apply to the file .*a.npz: leave it out"):
        open_data(tmp_path / "a.npz", size=8)


def test_shares_that_leave_nothing_raise():
    with pytest.raises(ValueError, match="the validation split of 3 samples is empty with validation=0.1"):
        split_rows(3, "validation", 0.1, 0)
    with pytest.raises(ValueError, match="validation must be a share"):
        split_rows(3, "train", 1.0, 0)


def test_both_are_under_one_import():
    import fewstep.data.spec as under
    from fewstep.data.open import open_data

    assert under.Dataset is Dataset and under.DataSpec is DataSpec and under.open_data is open_data


def test_frames_of_clips_are_pictures_with_what_goes_with_their_clips():
    raw = torch.arange(5 * 3 * 1 * 2 * 2.0).view(5, 3, 1, 2, 2)
    clips = Dataset(DataSpec("clips", (3, 1, 2, 2), (0.0, 60.0), 5, 5), raw, torch.arange(5))
    stills = frames_of(clips)
    assert len(stills) == 15 and stills.spec.shape == (1, 2, 2) and torch.equal(stills.images, raw.flatten(0, 1))
    rows = torch.tensor([14, 0, 4])
    images, named = stills.batch(rows)
    assert torch.equal(images, raw.flatten(0, 1)[rows]) and named["label"].tolist() == [4, 0, 1]
    assert (
        torch.equal(stills[rows][0], images) and torch.equal(stills[:2][0], raw[0, :2]) and stills.std() == clips.std()
    )
    with pytest.raises(ValueError, match="no clips"):
        frames_of(stills)
