"""The pyramid of one picture: its scales, where each begins, and the crops that are learned from."""

from __future__ import annotations

import pytest
import torch

from fewstep.data.pyramid import Pyramid, scaled


@pytest.fixture
def texture():
    """Stripes of two widths, (2, 30, 40)."""
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(40.0), indexing="ij")
    return torch.stack([torch.sin(x / 5) * torch.cos(y / 7), torch.sin(x * 1.3 + y)]).mul(0.8)


def test_the_pyramid(texture):
    pyramid = Pyramid(texture, factor=1.5, coarsest=12)
    assert pyramid.scales == 3 and pyramid.sizes() == [(13, 18), (20, 27), (30, 40)]
    assert torch.equal(pyramid.sharp(2)[0], texture) and not pyramid.blurred(0).any()
    for scale in (1, 2):
        assert torch.equal(pyramid.blurred(scale), scaled(pyramid.sharp(scale - 1), pyramid.sizes()[scale]))
        detail = float((pyramid.sharp(scale) - pyramid.blurred(scale)).square().mean().sqrt())
        start = pyramid.starts[scale]
        assert start / (1 - start) == pytest.approx(detail, rel=1e-5)  # noise as strong as the detail
    assert pyramid.starts[0] == 1.0
    assert pyramid.sizes((60, 20))[-1] == (60, 20)


def test_a_batch_is_crops_of_one_scale_beside_the_coarser_picture(texture):
    pyramid = Pyramid(texture, factor=1.5, coarsest=12, crop=16)
    generator = torch.Generator().manual_seed(0)
    scales = set()
    for _ in range(20):
        x0, condition = pyramid(4, generator)
        scale = int(condition["scale"][0])
        scales.add(scale)
        assert x0.shape == condition["y"].shape == (4, 2, min(16, pyramid.sizes()[scale][0]), 16)
        sharp, blurred = pyramid.sharp(scale)[0], pyramid.blurred(scale)[0]
        places = sharp.unfold(1, x0.shape[2], 1).unfold(2, 16, 1)  # (C, h, w, H, W)
        for crop, beside in zip(x0, condition["y"], strict=True):
            match = (places == crop[:, None, None]).all(0).all(-1).all(-1).nonzero()
            assert len(match) == 1
            i, j = match[0].tolist()
            assert torch.equal(beside, blurred[:, i : i + x0.shape[2], j : j + 16])
    assert scales == {0, 1, 2}


def test_bad_pictures_are_refused(texture):
    with pytest.raises(ValueError, match="float tensor"):
        Pyramid(texture[0])
    with pytest.raises(ValueError, match="coarsest 2 to 30"):
        Pyramid(texture, coarsest=31)
    with pytest.raises(ValueError, match="factor must be above 1"):
        Pyramid(texture, factor=1.0)
