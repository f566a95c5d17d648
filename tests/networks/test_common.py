from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fewstep.networks.common import as_pair, attend, head_count, plain


@pytest.mark.parametrize("width, heads", [(24, 1), (48, 1), (64, 2), (72, 2), (96, 3), (100, 2), (160, 5)])
def test_heads_are_at_least_32_wide(width, heads):
    assert head_count(width) == heads
    assert width % heads == 0 and (width // heads >= 32 or heads == 1)


def test_attend_is_softmax_attention():
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 7, 3 * 6, generator=generator, dtype=torch.float64)
    query, key, value = (part.reshape(2, 7, 2, 3) for part in qkv.chunk(3, dim=2))
    weights = F.softmax(torch.einsum("bihc,bjhc->bhij", query, key) / 3**0.5, dim=-1)
    expected = torch.einsum("bhij,bjhc->bihc", weights, value).reshape(2, 7, 6)
    assert torch.allclose(attend(qkv, 2), expected, atol=1e-12)


def test_size_pairs():
    assert as_pair(8) == (8, 8) and as_pair([4, 6]) == (4, 6)
    assert plain((8, 8)) == 8 and plain((4, 6)) == [4, 6]
    for wrong in (0, (3,), (4, -2), 2.5, "ab"):
        with pytest.raises((ValueError, TypeError), match="size must be|not iterable"):
            as_pair(wrong)
