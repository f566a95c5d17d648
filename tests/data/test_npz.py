from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from fewstep.data.dataset import DataSpec
from fewstep.data.open import open_data


def save(folder, **arrays):
    path = folder / "images.npz"
    np.savez(path, **arrays)
    return path


def test_bytes_with_labels(tmp_path):
    images = np.arange(10 * 4 * 6 * 3, dtype=np.uint32).astype(np.uint8).reshape(10, 4, 6, 3)
    path = save(tmp_path, images=images, labels=np.arange(10) % 3)
    data = open_data(path, split="all", seed=5)
    assert data.spec == DataSpec("images", (3, 4, 6), (-1.0, 1.0), 3, 10)
    order = np.random.default_rng(5).permutation(10)
    expected = torch.from_numpy(images[order]).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.allclose(data.images, expected, atol=1e-6)
    assert data.labels.tolist() == (order % 3).tolist()


def test_floats_keep_their_stated_range(tmp_path):
    images = np.random.default_rng(0).uniform(0, 1, (10, 4, 6))
    data = open_data(save(tmp_path, images=images), value_range=(0, 1), validation=0.3)
    assert data.spec == DataSpec("images", (1, 4, 6), (0.0, 1.0), None, 7)
    order = np.random.default_rng(0).permutation(10)[:7]
    assert torch.equal(data.images[:, 0], torch.from_numpy(images[order].astype(np.float32)))
    stored = save(tmp_path, images=images, value_range=np.array([0.0, 2.0]))
    assert open_data(stored).spec.value_range == (0.0, 2.0)


class Trap:
    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["images", "labels"])
def test_pickles_are_refused_and_never_run(tmp_path, name):
    trap = Trap()
    trap.path = tmp_path / "ran"
    arrays = {"images": np.zeros((3, 4, 4), np.uint8), "labels": np.zeros(3, int)}
    arrays[name] = np.array([trap, None, None], dtype=object)
    path = save(tmp_path, **arrays)
    with pytest.raises(ValueError, match=f"'{name}' in .* holds pickled Python objects"):
        open_data(path)
    assert not trap.path.exists()
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="is not an .npz file"):
        open_data(path)


@pytest.mark.parametrize(
    "arrays, arguments, message",
    [
        ({"pictures": np.zeros(3)}, {}, "no array 'images'; it has pictures"),
        ({"images": np.zeros((3, 4))}, {}, r"must be \(N, H, W\)"),
        ({"images": np.zeros((3, 4, 4, 5))}, {}, "at most 4 channels"),
        ({"images": np.zeros((0, 4, 4))}, {}, "must be"),
        ({"images": np.full((3, 4, 4), 0.25)}, {}, r"unstated range \(0.25 to 0.25 found\)"),
        ({"images": np.zeros((3, 4, 4), np.int32)}, {}, "must be uint8 or floats, got int32"),
        ({"images": np.full((3, 4, 4), 2.0)}, {"value_range": (0, 1)}, "run from 2 to 2, outside 0 to 1"),
        ({"images": np.full((3, 4, 4), np.nan)}, {"value_range": (0, 1)}, "run from nan to nan"),
        ({"images": np.zeros((3, 4, 4))}, {"value_range": (1, 0)}, "low < high"),
        ({"images": np.zeros((3, 4, 4), np.uint8)}, {"value_range": (0, 1)}, "leave value_range out"),
        ({"images": np.zeros((3, 4, 4), np.uint8), "labels": np.zeros(4, int)}, {}, "must be 3 whole numbers"),
        ({"images": np.zeros((3, 4, 4), np.uint8), "labels": np.zeros(3)}, {}, "of float64"),
        ({"images": np.zeros((3, 4, 4), np.uint8), "labels": np.array([0, -1, 2])}, {}, "start at 0, got -1"),
    ],
)
def test_wrong_arrays_raise(tmp_path, arrays, arguments, message):
    with pytest.raises(ValueError, match=message):
        open_data(save(tmp_path, **arrays), **arguments)


def test_arrays_without_names_are_those_of_guided_diffusion(tmp_path):
    images = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    np.savez(tmp_path / "samples.npz", images, np.array([0, 1, 2, 1, 0]))
    data = open_data(tmp_path / "samples.npz", split="all")
    order = np.random.default_rng(0).permutation(5)
    assert data.spec.classes == 3 and data.labels.tolist() == np.array([0, 1, 2, 1, 0])[order].tolist()
    assert torch.equal(data.raw, torch.from_numpy(images[order]).permute(0, 3, 1, 2))
    np.savez(tmp_path / "alone.npz", images)
    assert open_data(tmp_path / "alone.npz", split="all").spec.classes is None


@pytest.mark.parametrize(
    "labels, said",
    [
        ([1, 2, 3], "are 1 to 3, 3 different ones: the network gets 4 classes, 1 of them without a picture \\(0\\)"),
        ([0, 0, 9], "the network gets 10 classes, 8 of them without a picture \\(1, 2, 3, 4, 5, ...\\)"),
    ],
)
def test_labels_with_gaps_are_said(tmp_path, labels, said):
    path = save(tmp_path, images=np.zeros((3, 4, 4), np.uint8), labels=np.array(labels))
    with pytest.warns(UserWarning, match=said):
        assert open_data(path, split="all").spec.classes == max(labels) + 1
