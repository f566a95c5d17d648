"""The counter-based noise: its bits for ever, independence in every direction, and the normal law."""

from __future__ import annotations

import itertools
import math
import threading

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fewstep.core.noise import (
    Noise,
    Seeds,
    _pairs,
    _places,
    half_normal,
    half_normal_means,
    several,
    split_mix,
    stream,
)

F64 = torch.float64
CPU = torch.device("cpu")


def checksum(x: Tensor) -> int:
    return int(x.contiguous().view(torch.int32).long().sum())


def test_split_mix_known_answers():
    """The first outputs of the reference program for the seed 1234567."""
    numbers = split_mix(torch.tensor(1234567), torch.arange(1, 4))
    assert [n % 2**64 for n in numbers.tolist()] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_numbers_are_these_for_ever():
    """Of version 2: a change of any of them is another version."""
    assert Noise(0).normal(0, (1, 4)).flatten().tolist() == [
        -1.2146286964416504,
        -1.7828454971313477,
        0.6812705993652344,
        -0.9492435455322266,
    ]
    assert checksum(Noise(1).normal(2, (3, 5, 7))) == -2_868_536_332
    assert checksum(Noise(2**63, first=9).normal(1, (2, 3, 100, 100))) == -1_088_392_722_361


def test_tables():
    """No entry lies where the last bit of a logarithm could round it the other way; the rest is in the comments."""
    means = half_normal_means()
    assert np.abs(means * 2.0**20 % 1 - 0.5).min() * 2.0**-20 > 1e-11  # 8 times the error of a library's last bits
    assert np.mean(half_normal() ** 2) == pytest.approx(1, abs=1e-7)
    pairs = 2 * _pairs(CPU).numpy().astype(np.complex128)
    for p, q in ((1, 1), (2, 1), (2, 2), (3, 1), (4, 2), (2, 4), (4, 4)):
        both = np.mean(pairs.real**p * pairs.imag**q)
        apart = np.mean(pairs.real**p) * np.mean(pairs.imag**q)
        assert abs(both - apart) < 3e-4 * math.sqrt(np.mean(pairs.real ** (2 * p)) * np.mean(pairs.imag ** (2 * q)))
    assert len(_places(CPU).unique()) == 4096


def test_tails_of_the_law():
    """The sum of four of the quantiles, convolved on a grid, against the normal law."""
    step, size = 2.0**-9, 2**14
    values = half_normal() / 2
    density = np.zeros(size)
    for signed in (values, -values):
        place = signed / step + size // 2
        low = np.floor(place).astype(int)
        np.add.at(density, low, (low + 1 - place) / (2 * len(values)))  # shared between neighbours: the mean is kept
        np.add.at(density, low + 1, (place - low) / (2 * len(values)))
    four = np.fft.ifft(np.fft.fft(np.fft.ifftshift(density)) ** 4).real
    law = np.fft.fftshift(four)
    z = (np.arange(size) - size // 2) * step
    for limit, rtol in ((1, 1e-3), (3, 1e-3), (4, 3e-3), (5, 0.03), (5.5, 0.06)):
        tail = law[z > limit].sum() + 0.5 * law[z == limit].sum()
        assert tail == pytest.approx(stats.norm.sf(limit), rel=rtol)
    assert 4 * values.max() > 8


@pytest.mark.parametrize("shape", [(3, 5, 7), (1,), (2,), (3,), (4, 4), (13,), (20_000,)])
@pytest.mark.parametrize("draw", [0, 3])
def test_sample_i_is_the_same_bits_in_every_batch(shape, draw):
    together = Noise(9, first=5).normal(draw, (8, *shape))
    for i in range(8):
        assert torch.equal(Noise(9, first=5 + i).normal(draw, (1, *shape))[0], together[i])
    assert torch.equal(Noise(9, first=2).normal(draw, (6, *shape))[3:], together[:3])
    order = (3, 0, 7)
    picked = Seeds((9,) * 3, tuple(5 + i for i in order)).normal(draw, (3, *shape))
    assert torch.equal(picked, together[list(order)])


def test_a_large_batch_is_made_of_the_same_numbers():
    """More than one block, of which the last is smaller."""
    together = Noise(1).normal(1, (19, 16_384))
    assert torch.equal(together[[0, 8, 9, 18]], Seeds((1,) * 4, (0, 8, 9, 18)).normal(1, (4, 16_384)))


@pytest.mark.parametrize("shape", [(2, 3), (1, 16_384), (3, 40_000)])
def test_a_stream_is_the_draws_one_by_one(shape):
    draws = [1, 2, 3, *range(10, 80), 5, -2, -1, 2**30]
    for source in (Noise(3, 1), Seeds((3, 4, 5)[: shape[0]], (0, 2**40, 1)[: shape[0]])):
        for draw, made in zip(draws, stream(source, draws, shape, CPU, torch.float32), strict=True):
            assert torch.equal(made, source.normal(draw, shape))


def test_streams_do_not_disturb_each_other():
    """Those of one thread share scratch memory, and a stream may go on in another thread."""
    shape = (1, 16_384)
    a, b = (stream(Noise(seed), itertools.count(1), shape, CPU, torch.float32) for seed in (0, 1))
    for draw in range(1, 20):
        assert torch.equal(next(a), Noise(0).normal(draw, shape))
        assert torch.equal(next(b), Noise(1).normal(draw, shape))
    wrong: list[int] = []

    def work(seed: int) -> None:
        for draw in range(40):
            if not torch.equal(Noise(seed).normal(draw, shape), expected[seed][draw]):
                wrong.append(draw)

    expected = [[Noise(seed).normal(draw, shape) for draw in range(40)] for seed in range(3)]
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_inference_mode_leaves_nothing_behind():
    with torch.inference_mode():
        inside = Noise(4).normal(1, (2, 40_000)).clone()
    weight = torch.ones((), requires_grad=True)
    outside = Noise(4).normal(1, (2, 40_000))
    (outside * weight).sum().backward()
    assert torch.equal(inside, outside) and weight.grad is not None


def test_other_dtypes_are_the_same_numbers():
    noise = Noise(4)
    assert noise.normal(1, (3, 7)).dtype == torch.float32
    for dtype in (F64, torch.float16):
        assert torch.equal(noise.normal(1, (3, 7), "cpu", dtype), noise.normal(1, (3, 7)).to(dtype))


def gram(rows: Tensor) -> None:
    """Rows without any pair that is correlated: the largest correlation, and the mean of their squares."""
    count, n = rows.shape
    rows = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
    pairs = (rows @ rows.T / math.sqrt(n))[tuple(torch.triu_indices(count, count, 1))]
    assert float(pairs.abs().max()) < stats.norm.isf(1e-4 / len(pairs))
    assert abs(float(pairs.square().mean()) - 1) < 4.5 * math.sqrt(2 / len(pairs))


LOW = [*range(40), *(2**k for k in range(6, 64)), *(2**k - 1 for k in range(6, 64)), -1, -2]
NUMBERS = tuple(seed for seed in LOW if 0 <= seed < 2**63 - 1)


@pytest.mark.parametrize("what", ["seeds", "samples", "draws", "parts"])
def test_rows_are_uncorrelated(what):
    n = 4096
    rows = {
        "seeds": lambda: Seeds(tuple(LOW), (0,) * len(LOW)).normal(0, (len(LOW), n)),
        "samples": lambda: Seeds((7,) * len(NUMBERS), NUMBERS).normal(0, (len(NUMBERS), n)),
        "draws": lambda: torch.cat([x.clone() for x in stream(Noise(7), range(200), (1, n), CPU, torch.float32)]),
        "parts": lambda: Noise(7).normal(0, (1, 100 * n)).view(100, n),
    }[what]().double()
    gram(rows)
    gram(rows.square())
    gram(rows.sign())
    gram(rows.T[:200, :])  # places, over seeds


def test_neighbours_within_a_sample_are_uncorrelated():
    """At short lags, at those of a picture's rows and planes, and at those of four normals that are made together."""
    x = Noise(11).normal(0, (16, 16_384), "cpu", F64)
    n = x.numel()
    for lag in (1, 2, 3, 4, 5, 8, 16, 32, 63, 64, 65, 128, 1024, 4095, 4096, 4097, 8192, 12_288):
        for y in (x, x**2 - 1, x**3 - 3 * x):
            c = float((y[:, lag:] * y[:, :-lag]).mean() / y.square().mean())
            assert abs(c) < 4.5 * math.sqrt(16_384 / (n * (16_384 - lag)))


@pytest.mark.parametrize("lag", [1, 2, 64, 4096, 8192])
def test_pairs_fill_the_square(lag):
    """Chi-square of 16 x 16 equally likely bins."""
    u = torch.special.ndtr(Noise(12).normal(0, (40, 16_384)))
    bins = (u * 16).long()
    both = (bins[:, lag:] * 16 + bins[:, :-lag]).flatten()
    counts = torch.bincount(both, minlength=256).numpy()
    assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4


def moments(x: np.ndarray) -> dict[int, float]:
    """The errors of the moments to the eighth, in standard deviations of an estimate."""
    raw = [1, 0, 1, 0, 3, 0, 15, 0, 105, 0, 945, 0, 10395, 0, 135135, 0, 2027025]
    return {k: (float(np.mean(x**k)) - raw[k]) / math.sqrt((raw[2 * k] - raw[k] ** 2) / x.size) for k in range(1, 9)}


@pytest.mark.parametrize("draw", [0, 2])
def test_the_law_is_standard_normal(draw):
    x = Noise(123).normal(draw, (61, 16_384), "cpu", F64).flatten().numpy()
    assert max(abs(error) for error in moments(x).values()) < 4
    assert stats.kstest(x, "norm").pvalue > 1e-3
    for limit in (2.0, 3.0, 4.0, 4.5):
        expected = x.size * 2 * stats.norm.sf(limit)
        assert abs((abs(x) > limit).sum() - expected) < 4.5 * math.sqrt(expected) + 1


@pytest.mark.slow
def test_the_law_of_a_hundred_million():
    total, errors, beyond, sums = 0, dict.fromkeys(range(1, 9), 0.0), np.zeros(4), np.zeros(3)
    limits = np.array([3.0, 4.0, 5.0, 5.5])
    for x in stream(Noise(2024), range(1, 400), (16, 16_384), CPU, F64):
        z = x.flatten().numpy()
        errors = {k: errors[k] + error * math.sqrt(z.size) for k, error in moments(z).items()}
        beyond += [(np.abs(z) > limit).sum() for limit in limits]
        squares = x**2 - 1
        sums += [float((squares[:, lag:] * squares[:, :-lag]).sum()) / 2 for lag in (1, 2, 4096)]
        total += z.size
    assert total > 1e8
    assert max(abs(error) / math.sqrt(total) for error in errors.values()) < 4
    assert max(abs(sums)) < 4 * math.sqrt(total)
    expected = total * 2 * stats.norm.sf(limits)
    assert (np.abs(beyond - expected) < 4.5 * np.sqrt(expected) + 1).all()


def test_the_law_across_samples_is_standard_normal():
    """One number of each of many samples: the sample's number is as good a counter as the place."""
    x = Noise(5).normal(0, (50_000, 1), "cpu", F64).flatten().numpy()
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 4.5 / math.sqrt(50_000)
    seeds = Seeds(tuple(range(20_000)), (0,) * 20_000).normal(0, (20_000, 1), "cpu", F64).flatten().numpy()
    assert stats.kstest(seeds, "norm").pvalue > 1e-3


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


def test_empty_batches_and_samples():
    assert Noise(1).normal(0, (0, 3)).shape == (0, 3)
    assert Noise(1).normal(0, (2, 0)).shape == (2, 0)


def test_samples_beyond_32_bits_are_their_own():
    big = 2**32
    low = Noise(3, 0).normal(0, (2, 6), "cpu", F64)
    high = Noise(3, big).normal(0, (2, 6), "cpu", F64)
    assert not torch.equal(low, high)
    across = Noise(3, big - 1).normal(0, (2, 6), "cpu", F64)
    assert torch.equal(across[1], high[0])
    assert len({tuple(row.tolist()) for row in (*low, *high, *across)}) == 5


def test_several_draws_at_once_are_the_same_numbers():
    for source in (Noise(3, 7), Seeds((1, 5), (0, 2))):
        draws = [*range(5, 100), 3, -2]
        found = several(source, draws, (2, 3), "cpu", torch.float64)
        assert torch.equal(found, torch.stack([source.normal(draw, (2, 3), dtype=torch.float64) for draw in draws]))
