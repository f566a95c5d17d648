"""JPEG against Pillow's coder."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.operators.jpeg import LUMA, Jpeg, quantisation


def picture(channels: int) -> np.ndarray:
    down, across = np.mgrid[:24, :20] / 20
    waves = [np.sin(5 * across + 3 * down * (1 + c)) + 0.5 * (across > 0.5) for c in range(channels)]
    return np.rint(np.stack(waves, -1) * 70 + 110).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("quality", [10, 50, 95])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_what_pillow_leaves(quality: int, channels: int):
    values = picture(channels)
    file = io.BytesIO()
    Image.fromarray(values.squeeze()).save(file, "JPEG", quality=quality, subsampling=0)
    wanted = np.asarray(Image.open(file)).reshape(values.shape).astype(float)
    x = torch.from_numpy(values.transpose(2, 0, 1).copy())[None].double()
    made = Jpeg(quality, halved=False, low=0, high=255)(x)[0].permute(1, 2, 0).numpy()
    # Pillow's cosine transforms are in whole numbers: some bytes come out on the other side of a half.
    assert np.abs(made - wanted).max() <= 3 and np.abs(made - wanted).mean() < 0.25
    assert np.abs(wanted - values).mean() > 0.2  # it does lose something


def test_halved_colours_keep_the_brightness():
    x = torch.from_numpy(picture(3).transpose(2, 0, 1).copy())[None].double() / 127.5 - 1
    halved, whole = Jpeg(90)(x), Jpeg(90, halved=False)(x)
    luma = torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]
    byte = 2 / 255
    assert float(((halved - whole) * luma).sum(1).abs().max()) < byte < 10 * byte < float((halved - whole).abs().max())


def test_the_gradient_goes_straight_through():
    """As that of no rounding at all: the identity inside the range."""
    x = torch.from_numpy(picture(1).transpose(2, 0, 1)[:, :8, :8].copy())[None].double() / 255 - 0.5
    assert torch.allclose(Jpeg(20).jacobian(x)[0], torch.eye(64, dtype=torch.float64), atol=1e-9)
    assert float((Jpeg(20)(x) - x).abs().max()) > 1e-2


def test_the_tables_and_their_scale():
    assert quantisation(LUMA, 50)[0, :4].tolist() == [16, 11, 10, 16] and quantisation(LUMA, 100).max() == 1
    assert quantisation(LUMA, 25)[0, 0] == 32 and quantisation(LUMA, 1).max() == 255
    flat = torch.full((1, 1, 8, 8), 0.3, dtype=torch.float64)
    steps = 8 * (round((0.3 + 1) / 2 * 255) - 128) / 32  # the mean is the first frequency, 8 times as large
    wanted = round(round(steps) * 32 / 8) + 128
    assert float(Jpeg(25)(flat)[0, 0, 0, 0]) == pytest.approx(wanted / 255 * 2 - 1)


def test_bad_input():
    for quality in (0, 101, 50.0):
        with pytest.raises(ValueError, match="the quality of JPEG is a whole number from 1 to 100"):
            Jpeg(quality)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"JPEG is for pictures \(1 or 3, H, W\), not for samples of shape \(2, 8, 8\)"
    ):
        Jpeg()(torch.zeros(1, 2, 8, 8))
