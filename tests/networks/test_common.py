from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fewstep.networks.common import Embedding, as_pair, attend, head_count, plain


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


def test_fourier_features_tell_near_noise_levels_apart_without_wild_slopes():
    embedding = Embedding(8, None)
    rates = embedding.frequencies
    assert rates.min() == pytest.approx(0.5) and rates.max() == pytest.approx(32)
    noise = torch.linspace(-3, 3, 601)[:, None] * rates
    features = torch.cat([noise.cos(), noise.sin()], dim=1)
    assert torch.pdist(features).min() > 0.3  # levels a hundredth apart


def test_noise_level_is_not_rounded_to_bfloat16():
    torch.manual_seed(0)
    embedding = Embedding(8, None).bfloat16()
    near = embedding(torch.tensor([1.0, 1.003]), None, 2)  # the same number in bfloat16
    assert near.dtype == torch.bfloat16 and not torch.equal(near[0], near[1])


def test_size_pairs():
    assert as_pair(8) == (8, 8) and as_pair([4, 6]) == (4, 6)
    assert plain((8, 8)) == 8 and plain((4, 6)) == [4, 6]
    for wrong in (0, (3,), (4, -2), 2.5, "ab"):
        with pytest.raises((ValueError, TypeError), match="size must be|not iterable"):
            as_pair(wrong)


def test_an_unknown_noise_level_is_a_learned_vector():
    embedding = Embedding(8, 3)
    before = embedding.state_dict().keys()
    with pytest.raises(ValueError, match="not trained for an unknown noise level"):
        embedding(None, None, 2)
    embedding.hide_noise()
    embedding.hide_noise()  # twice is once
    assert embedding.state_dict().keys() == {*before, "unknown"}
    with torch.no_grad():
        embedding.unknown.copy_(torch.arange(8.0))
    label, noise = torch.tensor([0, 1, 3]), torch.tensor([0.3, torch.nan, 0.1])
    mixed, known = embedding(noise, label, 3), embedding(noise.nan_to_num(0.0), label, 3)
    assert torch.equal(mixed[[0, 2]], known[[0, 2]])
    assert torch.equal(mixed[1], torch.arange(8.0) + embedding.label.weight[1])
    assert torch.equal(embedding(None, label, 3)[1], mixed[1])
    mixed.square().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in embedding.parameters())
