"""What masks see, and where they come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.operators.mask import Identity, Inpaint


def seen(mask: str, *shape: int, **options: float) -> list[list[int]]:
    return Inpaint(mask, **options).fit(shape).mask[0].int().tolist()  # type: ignore[arg-type]


def test_masks_by_name():
    assert seen("half", 1, 2, 4) == [[1, 1, 0, 0]] * 2
    assert seen("half", 1, 1, 5, share=0.2) == [[1, 0, 0, 0, 0]]
    assert seen("stripes", 1, 6, 1, share=1 / 3) == [[0], [0], [1], [0], [0], [1]]
    hole = [[1] * 6, [1, 0, 0, 0, 1, 1], [1, 0, 0, 0, 1, 1], [1] * 6]
    assert seen("box", 1, 4, 6, share=2 / 3) == hole
    assert Inpaint("box").fit((10,)).mask.tolist() == [1.0] * 2 + [0.0] * 5 + [1.0] * 3
    red, green, blue = Inpaint("bayer").fit((3, 2, 2)).mask.tolist()
    assert (red, green, blue) == ([[1, 0], [0, 0]], [[0, 1], [1, 0]], [[0, 0], [0, 1]])


def test_random_pixels_are_counted_and_follow_from_the_seed():
    one, same, other = (Inpaint("random", share=0.3, seed=seed).fit((2, 5, 8)).mask for seed in (1, 1, 2))
    assert int(one[0].sum()) == 12 and torch.equal(one[0], one[1])
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_pictures_arrays_and_files(tmp_path):
    values = np.zeros((4, 6), np.uint8)
    values[:, 3:] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(values).save(path)
    wanted = torch.tensor([0.0] * 3 + [1.0] * 3).double().expand(3, 4, 6)
    for given in (path, str(path), Image.fromarray(values), values, torch.from_numpy(values), values > 0):
        assert torch.equal(Inpaint(given).fit((3, 4, 6)).mask, wanted), type(given)
    assert str(Inpaint(path)) == f"inpaint:{path}" and str(Inpaint("half", share=0.3)) == "inpaint:half,share=0.3"


def test_measurements_hold_nothing_in_the_hole():
    operator, x = Inpaint("half"), torch.randn(2, 1, 3, 4)
    y = operator.measure(x, noise=0.5)
    assert bool((y[..., 2:] == 0).all()) and bool((y[..., :2] != x[..., :2]).all())
    assert torch.equal(Identity().measure(x), x) and Identity().holds is None


def test_bad_input():
    with pytest.raises(ValueError, match="the mask must lie between 0 and 1, got 0 to 2"):
        Inpaint(torch.arange(3.0))
    with pytest.raises(ValueError, match="0 everywhere: nothing is measured"):
        Inpaint(torch.zeros(3))
    with pytest.raises(ValueError, match="0 everywhere: nothing is measured"):
        Inpaint("random", share=0.01).fit((1, 2, 2))
    with pytest.raises(ValueError, match=r"a mask of shape \(3,\) does not fit samples of \(1, 4, 4\)"):
        Inpaint(torch.ones(3))(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="unknown mask 'boks': did you mean 'box'"):
        Inpaint("boks")
    with pytest.raises(ValueError, match="names a file that does not exist: 'none.png'"):
        Inpaint("none.png")
    with pytest.raises(ValueError, match="a share is for the masks box, half, random, stripes"):
        Inpaint(torch.ones(3), share=0.5)
    with pytest.raises(ValueError, match="a seed is for the mask 'random'"):
        Inpaint(np.ones(3), seed=1)
    with pytest.raises(ValueError, match="the share that a mask shows lies above 0 and at most at 1, got 1.5"):
        Inpaint("half", share=1.5)
    with pytest.raises(ValueError, match=r"for pictures of three colours \(3, H, W\), not \(1, 4, 4\)"):
        Inpaint("bayer").fit((1, 4, 4))
