"""The counter-based noise: Philox's published vectors, independence, and the normal law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fewstep.core.noise import Noise, _circle, _log, philox

F64 = torch.float64
ONES = 0xFFFFFFFF


def words(counter, key) -> list[str]:
    return [f"{int(word):08x}" for word in philox(tuple(torch.tensor([c]) for c in counter), key)]


def test_philox_known_answers():
    """The vectors that Random123 publishes for philox4x32-10 (kat_vectors)."""
    assert words((0, 0, 0, 0), (0, 0)) == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    assert words((ONES,) * 4, (ONES, ONES)) == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert words(pi, (0xA4093822, 0x299F31D0)) == ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"]


@pytest.mark.parametrize("shape", [(3, 5, 7), (1,), (2,), (3,), (4, 4), (13,)])
@pytest.mark.parametrize("draw", [0, 3])
def test_sample_i_is_the_same_bits_in_every_batch(shape, draw):
    together = Noise(9, first=5).normal(draw, (8, *shape), "cpu", F64)
    for i in range(8):
        assert torch.equal(Noise(9, first=5 + i).normal(draw, (1, *shape), "cpu", F64)[0], together[i])
    assert torch.equal(Noise(9, first=2).normal(draw, (6, *shape), "cpu", F64)[3:], together[:3])


def test_float32_is_the_float64_stream_rounded():
    noise = Noise(4)
    assert torch.equal(noise.normal(1, (3, 7)), noise.normal(1, (3, 7), "cpu", F64).float())
    assert noise.normal(1, (3, 7)).dtype == torch.float32


@pytest.mark.parametrize("other", [Noise(8), Noise(7, first=100), Noise(-7), Noise(7 + 2**32)], ids=str)
def test_seeds_samples_and_draws_are_uncorrelated(other):
    n = 40_000
    a = Noise(7).normal(0, (4, n // 4), "cpu", F64).flatten()
    for draw in (0, 1):
        b = other.normal(draw, (4, n // 4), "cpu", F64).flatten()
        for x, y in ((a, b), (a**2, b**2)):
            assert abs(float(torch.corrcoef(torch.stack((x, y)))[0, 1])) < 4.5 / math.sqrt(n)


def test_neighbours_within_a_sample_are_uncorrelated():
    x = Noise(11).normal(0, (1, 80_000), "cpu", F64)[0]
    for lag in (1, 2, 4, 20_000, 40_000):  # radius partners are half a sample apart, words a quarter
        for y in (x, x**2):
            assert abs(float(torch.corrcoef(torch.stack((y[lag:], y[:-lag])))[0, 1])) < 4.5 / math.sqrt(80_000 - lag)


@pytest.mark.parametrize("draw", [0, 2])
def test_the_law_is_standard_normal(draw):
    x = Noise(123).normal(draw, (100, 1999), "cpu", F64).flatten().numpy()
    n = len(x)
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(stats.skew(x)) < 4 * math.sqrt(6 / n)
    assert abs(stats.kurtosis(x)) < 4 * math.sqrt(24 / n)
    assert stats.kstest(x, "norm").pvalue > 1e-3
    for limit in (2.0, 3.0, 4.0):
        expected = n * 2 * stats.norm.sf(limit)
        assert abs((abs(x) > limit).sum() - expected) < 4.5 * math.sqrt(expected) + 1
    assert abs(x).max() < math.sqrt(-2 * math.log(2.0**-33)) + 1e-9


def test_the_law_across_samples_is_standard_normal():
    """One number of each of many samples: the sample's number is as good a counter as the position."""
    x = Noise(5).normal(0, (50_000, 1), "cpu", F64).flatten().numpy()
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert abs(float(torch.corrcoef(torch.stack((torch.tensor(x[1:]), torch.tensor(x[:-1]))))[0, 1])) < 4.5 / math.sqrt(
        50_000
    )


def test_log_against_libm():
    """To an absolute error that is nothing beside the smallest |log u| there is, 2^-33: the radius stays real."""
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=F64)
    ends = [0.5 * 2.0**-32, 1.5 * 2.0**-32, 1 - 0.5 * 2.0**-32, 1 - 1.5 * 2.0**-32, 0.5, math.sqrt(0.5), 0.25]
    u = torch.cat((u, torch.tensor(ends, dtype=F64), 1 - u * 1e-6))
    expected = torch.tensor([math.log(float(v)) for v in u], dtype=F64)
    torch.testing.assert_close(_log(u.clone()), expected, rtol=1e-15, atol=1e-15)
    assert bool((_log(u.clone()) < 0).all())


def test_circle_against_libm():
    turn = torch.cat(
        (torch.arange(-32, 33) / 64.0, torch.rand(20_000, generator=torch.Generator().manual_seed(0)) - 0.5)
    )
    turn = turn.double()
    c, s = _circle(turn.clone())
    expected_c = torch.tensor([math.cos(2 * math.pi * float(v)) for v in turn], dtype=F64)
    expected_s = torch.tensor([math.sin(2 * math.pi * float(v)) for v in turn], dtype=F64)
    torch.testing.assert_close(c, expected_c, rtol=0, atol=4e-15)
    torch.testing.assert_close(s, expected_s, rtol=0, atol=4e-15)
    torch.testing.assert_close(c**2 + s**2, torch.ones_like(c), rtol=0, atol=8e-15)


def test_any_python_integer_is_a_seed():
    def draw(seed: int, first: int = 0) -> torch.Tensor:
        return Noise(seed, first).normal(0, (2, 6), "cpu", F64)

    assert torch.equal(draw(-1), draw(2**64 - 1))
    assert torch.equal(draw(2**64 + 3), draw(3))
    assert not torch.equal(draw(2**63), draw(0))
    assert bool(torch.isfinite(draw(-(2**70) + 1)).all())


def test_what_is_no_seed():
    assert torch.equal(Noise(np.int64(-3)).normal(0, (1, 3)), Noise(-3).normal(0, (1, 3)))
    with pytest.raises(ValueError, match="seed must be a whole number, got 1.5"):
        Noise(1.5)
    with pytest.raises(ValueError, match="first must be at least 0, got -1"):
        Noise(1, -1)


def test_samples_beyond_32_bits_are_their_own():
    big = 2**32
    low = Noise(3, 0).normal(0, (2, 6), "cpu", F64)
    high = Noise(3, big).normal(0, (2, 6), "cpu", F64)
    assert not torch.equal(low, high)
    across = Noise(3, big - 1).normal(0, (2, 6), "cpu", F64)
    assert torch.equal(across[1], high[0])
    assert len({tuple(row.tolist()) for row in (*low, *high, *across)}) == 5
