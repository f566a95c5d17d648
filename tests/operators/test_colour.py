"""Grey from colours."""

from __future__ import annotations

import pytest
import torch

from fewstep.operators.colour import Grey


def test_luma_and_the_mean():
    x = torch.rand(2, 3, 4, 4)
    assert torch.allclose(Grey()(x)[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])
    assert torch.allclose(Grey()(x[:, :2]), x[:, :2].mean(1, keepdim=True))
    assert str(Grey([0.5, 0.25])) == "grey:0.5+0.25"


def test_bad_input():
    with pytest.raises(ValueError, match=r"one finite weight for each channel, not all of them 0, got \[0.0, 0.0\]"):
        Grey([0.0, 0.0])
    with pytest.raises(ValueError, match="there are 2 weights for samples of 3 channels"):
        Grey([1.0, 1.0])(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"grey is made of the channels of samples \(C, \*size\), not of \(4,\)"):
        Grey()(torch.zeros(1, 4))
