from __future__ import annotations

import numpy as np
import pytest
import torch

from fewstep.data.digits import load


def test_splits_are_the_stated_permutation():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(1797)
    for split, rows in [("train", order[:1437]), ("validation", order[1437:]), ("all", order)]:
        images, labels = load(split)
        assert images.shape == (len(rows), 1, 8, 8) and images.dtype == torch.float32
        assert labels.shape == (len(rows),) and labels.dtype == torch.int64
        assert np.array_equal((images[:, 0].numpy() + 1) * 8, bunch.images[rows])
        assert np.array_equal(labels.numpy(), bunch.target[rows])


def test_range_and_classes():
    images, labels = load("train")
    assert images.min() == -1 and images.max() == 1
    assert labels.unique().tolist() == list(range(10))
    assert float(images.std()) == pytest.approx(0.752, abs=1e-3)


def test_unknown_split_raises():
    with pytest.raises(ValueError, match="unknown split 'test': known: all, train, validation"):
        load("test")
