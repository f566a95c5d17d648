"""Ellipses inside an ellipse: reproducible, smooth at their edges, and measured again and again. Method: phantoms."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.data.open import open_data
from fewstep.data.phantoms import acquired, coverage, draw
from fewstep.operators.downsample import Downsample

ROWS = torch.arange(6)


def test_a_phantom_follows_from_its_row():
    pictures = draw(ROWS)
    assert pictures.shape == (6, 1, 32, 32) and torch.equal(draw(ROWS[3:5]), pictures[3:5])
    assert not torch.equal(pictures, draw(ROWS, "validation"))
    assert torch.equal(open_data("phantoms")[ROWS][0], pictures)
    assert bool((pictures[..., 0, 0] == -1).all()) and bool((pictures[..., 16, 16] > -1).any())
    assert len({round(float(p.std()), 6) for p in pictures}) == 6


def test_volumes():
    volume = draw(ROWS[:2], size=(8, 8, 8))
    assert volume.shape == (2, 1, 8, 8, 8) and float(volume.max()) <= 1 and float(volume.min()) == -1
    middle, end = volume[:, 0, 4], volume[:, 0, 0]
    assert bool((middle.flatten(1).std(1) > end.flatten(1).std(1)).all())


def test_an_ellipse_covers_its_area():
    for size, radii, wanted in (
        ((64, 48), (0.5, 0.3), math.pi * 0.15),
        ((24, 24, 24), (0.6, 0.5, 0.4), math.pi * 0.16),
    ):
        for angle in (0.0, 0.7):
            share = coverage(
                size, torch.zeros(1, len(size)).double(), torch.tensor([radii]).double(), torch.tensor([angle])
            )
            assert float(share.mean()) * 2 ** len(size) == pytest.approx(wanted, rel=1e-2)


def test_repeated_acquisitions_differ_by_their_noise_alone():
    clean, operator = draw(ROWS[:3]), Downsample(2)
    y = acquired(clean, operator, 0.1, times=400, seed=2)
    assert y.shape == (3, 400, 1, 16, 16)
    off = y - operator(clean)[:, None]
    assert float(off.std()) == pytest.approx(0.1, rel=0.01) and float(off.mean(1).std()) == pytest.approx(
        0.005, rel=0.1
    )
    assert torch.equal(acquired(clean[1:], operator, 0.1, times=400, seed=2, first=1), y[1:])


def test_bad_input():
    with pytest.raises(ValueError, match=r"phantoms have two axes or three of at least 2 pixels, got \(8,\)"):
        draw(ROWS, size=(8,))
    with pytest.raises(ValueError, match="rows are whole numbers"):
        draw(ROWS.float())
    with pytest.raises(ValueError, match="did you mean 'train'"):
        draw(ROWS, "trian")
    with pytest.raises(ValueError, match="measured at least once, got 0 times"):
        acquired(draw(ROWS), Downsample(2), 0.1, times=0)
