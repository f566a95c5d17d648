from __future__ import annotations

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.report.grid import gif_bytes, image_grid, png_bytes, save_png, to_pixels


def test_values_go_to_levels():
    x = torch.tensor([[[[-1.0, 0.0, 1.0], [2.0, -5.0, 0.5]]]])
    assert to_pixels(x).tolist() == [[[0, 128, 255], [255, 0, 191]]]
    assert to_pixels(x, (0.0, 1.0)).tolist() == [[[0, 0, 255], [255, 0, 128]]]


def test_a_run_that_diverged_is_drawn():
    x = torch.tensor([[[[float("nan"), float("inf"), -float("inf")]]]])
    assert to_pixels(x).tolist() == [[[0, 255, 0]]]


def test_rows_and_columns_stay_in_place():
    x = torch.linspace(-1, 1, 2 * 3 * 4 * 5).reshape(2, 3, 1, 4, 5)
    grid = image_grid(x, scale=1, gap=2, fill=7)
    assert grid.shape == (2 * 4 + 2, 3 * 5 + 4)
    assert np.array_equal(grid[6:10, 7:12], to_pixels(x[1, 1]))
    assert (grid[4:6] == 7).all() and (grid[:, 5:7] == 7).all()


def test_pixels_become_blocks_that_can_be_seen():
    x = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
    grid = image_grid(x)
    assert grid.shape == (2 * 64 + 4, 2 * 64 + 4)  # three images in two by two
    assert np.array_equal(grid[:64:8, :64:8], to_pixels(x)[0]) and np.array_equal(grid[7:64:8, 7:64:8], to_pixels(x)[0])
    assert np.array_equal(grid[68::8, :64:8], to_pixels(x)[2])
    assert (grid[68:, 68:] == 255).all()
    assert image_grid(torch.zeros(1, 1, 100, 90)).shape == (100, 90)


def test_colour():
    x = torch.zeros(1, 2, 3, 4, 5)
    x[0, 1, 0] = 1.0
    grid = image_grid(x, (0.0, 1.0), scale=1, gap=1)
    assert grid.shape == (4, 11, 3)
    assert grid[0, 6].tolist() == [255, 0, 0] and grid[0, 0].tolist() == [0, 0, 0]


def test_png_holds_pixels_and_parameters(tmp_path):
    grid = image_grid(torch.linspace(-1, 1, 6 * 12).reshape(6, 1, 3, 4), scale=2)
    meta = {"solver": "unipc", "steps": 8, "times": [1.0, 0.5], "note": "größer <σ>"}
    path = save_png(tmp_path / "a.png", grid, meta)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), grid)
        assert image.text == {"solver": "unipc", "steps": "8", "times": "[1.0, 0.5]", "note": "größer <σ>"}
    assert os.listdir(tmp_path) == ["a.png"]
    assert png_bytes(grid, meta) == path.read_bytes()


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (0, 1, 8, 8), (2, 2, 8, 8), (1, 1, 1, 1, 8, 8)])
def test_what_is_no_picture(shape):
    with pytest.raises(ValueError, match="must be"):
        image_grid(torch.zeros(shape))


def test_bad_numbers():
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="low < high"):
        image_grid(x, (1.0, -1.0))
    with pytest.raises(ValueError, match="at least 1"):
        image_grid(x, scale=0)
    with pytest.raises(ValueError, match="uint8"):
        png_bytes(np.zeros((2, 2)))


def test_a_gif_has_its_frames_and_its_comment():
    frames = [np.full((6, 8, 3), grey, np.uint8) for grey in (0, 100, 255)]
    with Image.open(io.BytesIO(gif_bytes(frames, "what made it"))) as found:
        assert (found.n_frames, found.size, found.info["loop"]) == (3, (8, 6), 0)
        assert found.info["comment"] == b"what made it"
        for number, frame in enumerate(frames):
            found.seek(number)
            assert np.array_equal(np.asarray(found.convert("RGB")), frame)
    with pytest.raises(ValueError, match="frames must be uint8, of one size"):
        gif_bytes([frames[0], frames[1][:4]])
