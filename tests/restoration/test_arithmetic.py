"""The arithmetic coder: every stream comes back, and is as long as its entropy says."""

from __future__ import annotations

import math
from itertools import repeat

import numpy as np
import pytest

from fewstep.restoration.arithmetic import Adaptive, Given, decode, encode

LAWS = {
    "uniform": [1] * 37,
    "skewed": [10_000, 300, 20, 1],
    "geometric": [2 ** (12 - k) for k in range(13)],
    "with gaps": [0, 5, 0, 0, 3, 1, 0],
    "one symbol": [7],
    "the largest sum": [(1 << 30) - 1, 1],
}


def drawn(counts, n, seed=0):
    share = np.array(counts) / sum(counts)
    return np.random.default_rng(seed).choice(len(counts), n, p=share).tolist()


def entropy(symbols):
    _, counts = np.unique(symbols, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("n", [0, 1, 2, 300])
def test_what_was_coded_comes_back(name, n):
    counts = LAWS[name]
    symbols = drawn(counts, n, seed=n)
    assert decode(encode(symbols, repeat(Given(counts))), repeat(Given(counts), n)) == symbols
    data = encode(symbols, repeat(Adaptive(len(counts))))
    assert decode(data, repeat(Adaptive(len(counts)), n)) == symbols


@pytest.mark.parametrize("name", LAWS)
def test_the_length_is_the_entropy(name):
    symbols = drawn(LAWS[name], 5000)
    counts = np.bincount(symbols, minlength=len(LAWS[name])).tolist()
    bits = entropy(symbols)
    given = 8 * len(encode(symbols, repeat(Given(counts))))
    assert bits - 8 <= given <= 1.01 * bits + 32  # zeros of the last byte are left out
    learnt = (len(counts) - 1) / 2 * math.log2(len(symbols))  # what it costs not to know the law
    assert 8 * len(encode(symbols, repeat(Adaptive(len(counts))))) <= 1.01 * bits + 32 + learnt


def test_one_symbol_costs_nothing_and_laws_may_differ():
    assert encode([], []) == encode([0] * 1000, repeat(Given([3]))) == b""
    symbols = [drawn(LAWS[name], 1, seed=k)[0] for k, name in enumerate(list(LAWS) * 20)]
    laws = [Given(LAWS[name]) for name in list(LAWS) * 20]
    assert decode(encode(symbols, laws), laws) == symbols


def test_an_interval_that_stays_around_the_middle_comes_back():
    symbols = [1] * 400  # the middle third of each interval: no digit is certain for long
    law = Given([1, 1, 1])
    assert decode(encode(symbols, repeat(law)), repeat(law, 400)) == symbols


def test_bad_input_is_said():
    with pytest.raises(ValueError, match="the symbol 1 has no frequency among 2"):
        encode([1], [Given([1, 0])])
    with pytest.raises(ValueError, match="the symbol -1 has no frequency among 2"):
        encode([-1], [Given([1, 1])])
    for counts in ([], [0, 0], [1, -1], [1 << 30, 1]):
        with pytest.raises(ValueError, match=r"their sum from 1 to 2\^30"):
            Given(counts)
