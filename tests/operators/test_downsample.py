"""Fewer pixels against torch's own reductions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fewstep.operators.downsample import Downsample

X = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_it_is_what_torch_makes_of_pictures():
    assert torch.allclose(Downsample(2)(X), F.avg_pool2d(X, 2))
    wanted = F.interpolate(X, (2, 3), mode="bicubic", antialias=True)
    assert torch.allclose(Downsample(4, "bicubic")(X), wanted, atol=1e-12)
    assert torch.equal(Downsample(2, "stride")(X), X[..., ::2, ::2])


@pytest.mark.parametrize("kind", ["average", "bicubic", "stride"])
def test_vectors_and_volumes_too(kind: str):
    assert Downsample(3, kind).measured((12,)) == (4,)
    assert Downsample(2, kind).measured((2, 4, 6, 8)) == (2, 2, 3, 4)
    line = Downsample(3, kind)(X[:, 0, 0])
    assert torch.allclose(line, Downsample(3, kind)(X[:, 0, :1]).squeeze(1))
    if kind != "stride":
        assert torch.allclose(Downsample(2, kind)(torch.ones(1, 2, 4, 6, 8)), torch.ones(1, 2, 2, 3, 4))


def test_half_precision_stays():
    for kind in ("average", "bicubic", "stride"):
        assert Downsample(2, kind)(X.bfloat16()).dtype == torch.bfloat16


def test_bad_input():
    with pytest.raises(
        ValueError, match=r"downsample:5,filter=average needs sizes that 5 divides, got .* \(3, 8, 12\)"
    ):
        Downsample(5)(X)
    with pytest.raises(ValueError, match="a whole factor of at least 1, got 1.5"):
        Downsample(1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="did you mean 'bicubic'"):
        Downsample(2, "bicubik")
    two = Downsample(2)
    two(X)
    with pytest.raises(ValueError, match=r"measures samples of shape \(3, 8, 12\), not \(3, 4, 4\)"):
        two(torch.zeros(1, 3, 4, 4))
