"""Noise that belongs to the sample, not to the batch: a counter-based generator in tensor operations.

Draw k of sample i is a function of (seed, i, k) and of the sample's size alone: the same in a batch of 1 or 8, on one
device or four. All arithmetic is on integers or exact, so the bits are the same wherever it is done.

1. A key of 128 bits for each seed, sample, draw and part of 16384 elements: the finaliser of SplitMix64 (Steele et al.,
   "Fast splittable pseudorandom number generators", 2014), once for each of the seed, the sample, and the other two.
2. A fixed random word for each place in a part is scrambled by the key: two rounds of a product, an exclusive or, and
   the upper half added to the lower.
3. Each 16 bits of a word look up two numbers, both quantiles of the normal law (2^15 of them), in orders that leave
   the two without correlation.
4. Four such numbers, each of another look-up, turn into four normals by an orthogonal matrix of entries 1/2 and -1/2.
   So a normal is the sum of four independent quantiles, one of 2^60: it reaches to 8 standard deviations, and its
   moments to the eighth are the law's within the error of 10^8 draws.
"""

from __future__ import annotations

import functools
import math
import operator
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

Word = TypeVar("Word", int, Tensor)

VERSION = 2  # of the numbers that a seed stands for; saved wherever a seed is

_GAMMA, _FIRST, _SECOND = (n - (1 << 64) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_PART = 1 << 14  # elements of a sample under one key
_AHEAD = 64  # draws whose keys are made at once
_BLOCK = 1 << 18  # normals made at once on a CPU, in scratch memory of 8 bytes each; four times as many elsewhere


def split_mix(z: Word, index: Word) -> Word:
    """The outputs number `index` of SplitMix64 from states z: int64 that broadcast, or integers, whose low 64 bits
    count."""
    z = z + index * _GAMMA
    z = (z ^ ((z >> 30) & (1 << 34) - 1)) * _FIRST  # the shift is arithmetic, so its upper bits are masked
    z = (z ^ ((z >> 27) & (1 << 37) - 1)) * _SECOND
    return z ^ ((z >> 31) & (1 << 33) - 1)


def _two_words(z: Tensor) -> Tensor:
    """The lower and the upper half of int64 as int32, `(2, *shape)`."""
    return torch.stack((z.to(torch.int32), (z >> 32).to(torch.int32)))


@functools.cache
def _places(device: torch.device) -> Tensor:
    """(4096,) int32: the word of each place in a part."""
    numbers = split_mix(torch.zeros(1, dtype=torch.int64), torch.arange(1, _PART // 8 + 1))
    return _two_words(numbers).view(-1).to(device)


def half_normal() -> np.ndarray:
    """(16384,) float64: the means of as many equally likely parts of the law of |z|, scaled to a mean square of 1.

    They are multiples of 2^-20: none lies so close to the middle of two that the last bit of a library's logarithm or
    exponential would show.
    """
    return np.round(half_normal_means() * 2.0**20) * 2.0**-20


def half_normal_means() -> np.ndarray:
    """`half_normal` before it is rounded."""
    edges = np.array([0.0, *(NormalDist().inv_cdf((_PART + j) / (2 * _PART)) for j in range(1, _PART))])
    density = np.append(np.exp(-edges * edges / 2), 0.0)
    means = density[:-1] - density[1:]
    return np.asarray(means / math.sqrt(np.mean(means**2)))


@functools.cache
def _pairs(device: torch.device) -> Tensor:
    """(65536,) complex64: the two numbers, halved, that each 16 bits look up.

    The bits are two signs, and a place among the quantiles of |z|, whose partner follows by a lattice: of all of them
    the one with the smallest correlations between powers of the two up to the sixth (2e-5 between the squares).
    """
    half = half_normal() / 2
    a, b = half, half[(2815 * np.arange(_PART) + 11000) % _PART]
    real, imaginary = np.concatenate((a, -a, a, -a)), np.concatenate((b, b, -b, -b))
    return torch.complex(torch.from_numpy(real).float(), torch.from_numpy(imaginary).float()).to(device)


class Source(Protocol):
    """Where per-step noise comes from."""

    def normal(
        self, draw: int, shape: tuple[int, ...], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Standard normals of `shape` `(B, *sample)`, the same for the same sample and draw."""
        ...


@dataclass(frozen=True)
class Noise:
    """The noise of samples `first, first + 1, ...` under one seed (any Python int; its low 64 bits count).

    Draw 0 is the initial noise of a run, draws 1, 2, ... are those of its steps. The numbers are float32; in another
    dtype they are the same ones, converted.
    """

    seed: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        for name, value in (("seed", self.seed), ("first", self.first)):
            if not hasattr(value, "__index__"):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        if self.first < 0:
            raise ValueError(f"first must be at least 0, got {self.first}")

    def normal(
        self, draw: int, shape: tuple[int, ...], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Standard normals of `shape` `(B, *sample)`, row i those of sample `first + i`."""
        return next(self.stream((draw,), shape, device, dtype))

    def stream(
        self, draws: Iterable[int], shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype
    ) -> Iterator[Tensor]:
        """`normal` of each draw in turn; each is a view that later ones overwrite."""
        for block in self.blocks(draws, shape, device, dtype):
            yield from block

    def blocks(
        self, draws: Iterable[int], shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype
    ) -> Iterator[Tensor]:
        """The draws in order, as many at once as are made together: `(D, *shape)`, which later ones overwrite."""
        seed = torch.cat([torch.full((1, 1), lane, device=device) for lane in _lanes(self.seed)])  # no copy to wait for
        yield from _blocks_of(seed, torch.arange(self.first, self.first + shape[0], device=device), draws, shape, dtype)


@dataclass(frozen=True)
class Seeds:
    """The noise of any samples: row i is that of sample `numbers[i]` under `seeds[i]`, exactly as `Noise` gives it."""

    seeds: tuple[int, ...]
    numbers: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.seeds) != len(self.numbers):
            raise ValueError(f"each seed needs the number of its sample, got {len(self.seeds)} and {len(self.numbers)}")
        for seed, number in zip(self.seeds, self.numbers, strict=True):
            Noise(seed, number)  # the same checks

    def __getitem__(self, rows: slice) -> Seeds:
        return Seeds(self.seeds[rows], self.numbers[rows])

    def normal(
        self, draw: int, shape: tuple[int, ...], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Standard normals of `shape` `(B, *sample)`, B being the number of seeds."""
        return next(self.stream((draw,), shape, device, dtype))

    def stream(
        self, draws: Iterable[int], shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype
    ) -> Iterator[Tensor]:
        """`normal` of each draw in turn; each is a view that later ones overwrite."""
        for block in self.blocks(draws, shape, device, dtype):
            yield from block

    def blocks(
        self, draws: Iterable[int], shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype
    ) -> Iterator[Tensor]:
        """As those of `Noise`."""
        if shape[0] != len(self.seeds):
            raise ValueError(f"there are {len(self.seeds)} seeds for a batch of {shape[0]}")
        seeds = torch.tensor([_lanes(seed) for seed in self.seeds], dtype=torch.int64, device=device).view(-1, 2).T
        numbers = torch.tensor(self.numbers, dtype=torch.int64, device=device)
        yield from _blocks_of(seeds, numbers, draws, shape, dtype)


def stream(
    source: Source, draws: Iterable[int], shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype
) -> Iterator[Tensor]:
    """A source's draws in turn, of `Noise` and `Seeds` several at once, which costs less; each is a view that later
    ones may overwrite."""
    if isinstance(source, Noise | Seeds):
        return source.stream(draws, shape, device, dtype)
    return (source.normal(draw, shape, device, dtype) for draw in draws)


def _lanes(seed: int) -> list[int]:
    """The two states of 64 bits that a seed stands for, as those of int64."""
    made = [split_mix(operator.index(seed), lane) for lane in (1, 2)]
    return [(state + (1 << 63)) % (1 << 64) - (1 << 63) for state in made]


def several(
    source: Source, draws: Iterable[int], shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype
) -> Tensor:
    """A source's draws `(D, *shape)`, which nothing overwrites."""
    if isinstance(source, Noise | Seeds):
        return torch.cat([block.clone() for block in source.blocks(draws, shape, device, dtype)])
    return torch.stack([source.normal(draw, shape, device, dtype) for draw in draws])


def _blocks_of(
    seed: Tensor, sample: Tensor, draws: Iterable[int], shape: tuple[int, ...], dtype: torch.dtype
) -> Iterator[Tensor]:
    """The draws, some at a time, of samples `(B,)` under the lanes of seeds, `(2, 1)` or `(2, B)`."""
    size, device = math.prod(shape[1:]), sample.device
    parts = max(1, -(-size // _PART))
    words = 4 * max(1, -(-size // (16 * parts)))  # 32 bits make four normals, and words turn by fours
    rows = len(sample) * parts  # of a draw
    most = max(1, _BLOCK * (1 if device.type == "cpu" else 4) // (4 * words))
    part = torch.arange(parts, device=device)
    own = split_mix(seed, sample + 1).view(2, 1, -1, 1)
    made, blocks, thread = torch.empty(0, device=device), [], 0
    for some in _consecutive(draws):
        draw = torch.arange(some.start, some.stop, device=device).view(-1, 1, 1)
        keys = _two_words(split_mix(own, (draw << 32) + part)).view(4, -1, 1)
        keys[:2] |= 1  # the multipliers
        for begin, end in _even(len(some), max(1, most // max(1, rows))):
            if len(made) != (end - begin) * rows or thread != threading.get_ident():  # the scratch is a thread's own
                made = torch.empty(((end - begin) * rows, 4 * words), device=device)
                blocks, thread = _blocks(made, most), threading.get_ident()
            for first, last, block in blocks:
                block(keys[:, begin * rows + first : begin * rows + last])
            normals = made.view(end - begin, len(sample), parts * 4 * words)[:, :, :size]
            yield normals.to(dtype).reshape(end - begin, *shape)


def _consecutive(draws: Iterable[int]) -> Iterator[range]:
    """The draws in stretches of consecutive ones."""
    some = range(0)
    for draw in draws:
        if some and (draw != some.stop or len(some) == _AHEAD):
            yield some
            some = range(0)
        some = range(some.start if some else draw, draw + 1)
    if some:
        yield some


def _even(count: int, most: int) -> Iterator[tuple[int, int]]:
    """`count` things in as few stretches of at most `most` as there can be, of lengths that differ by one at most."""
    stretches = -(-count // most)
    ends = [count * k // stretches for k in range(1, stretches + 1)]
    return zip([0, *ends], ends, strict=False)


class _Block:
    """Fills `out` `(R, 4 * words)` with the normals of keys `(4, R, 1)`, in scratch memory `(2, R * 4 * words)`."""

    def __init__(self, out: Tensor, scratch: Tensor):
        rows, words = len(out), out.shape[1] // 4
        self.places, self.pairs = _places(out.device)[:words], _pairs(out.device)
        self.half = torch.full((), 16, dtype=torch.int32, device=out.device)
        one, two = scratch
        self.word, self.upper, *_ = one.view(torch.int32).view(4, rows, words)
        self.halves, self.index = self.word.view(torch.uint16).view(-1), one.view(torch.int32)[2 * rows * words :]
        self.found = two.view(torch.complex64)
        self.terms = two.view(rows, 2, 2 * words).unbind(1)
        self.sums = one.view(2, rows, 2 * words).unbind()  # where words and indices were
        self.terms2 = one.view(2, rows, 2, words).unbind(2)
        self.sums2 = out.view(rows, 2, 2, words).transpose(0, 2).unbind(1)

    def __call__(self, keys: Tensor) -> None:
        word, upper, half = self.word, self.upper, self.half
        multiplier, multiplier2, mask, _ = keys
        torch.mul(self.places, multiplier, out=word).bitwise_xor_(mask)
        word.add_(torch.bitwise_right_shift(word, half, out=upper))  # arithmetic: nearly one to one
        word.mul_(multiplier2)
        word.add_(torch.bitwise_right_shift(word, half, out=upper))
        self.index.copy_(self.halves)
        torch.index_select(self.pairs, 0, self.index, out=self.found)
        torch.add(*self.terms, out=self.sums[0])
        torch.sub(*self.terms, out=self.sums[1])
        torch.add(*self.terms2, out=self.sums2[0])
        torch.sub(*self.terms2, out=self.sums2[1])


def _blocks(made: Tensor, most: int) -> list[tuple[int, int, _Block]]:
    """What fills all rows, at most so many at a time: the first row, the last one, and how."""
    width, device = made.shape[1], made.device
    scratch = _scratch(min(most, len(made)) * width, device)
    return [(i, j, _Block(made[i:j], scratch[:, : (j - i) * width])) for i, j in _even(len(made), most)]


_kept = threading.local()


def _scratch(size: int, device: torch.device) -> Tensor:
    """`(2, size)`; on a CPU the thread's own, kept: the first touch of new memory costs more than the normals."""
    if device.type != "cpu":
        return torch.empty((2, size), device=device)
    if getattr(_kept, "scratch", None) is None or _kept.scratch.shape[1] < size:
        with torch.inference_mode(False):  # what is made in that mode could not be overwritten outside
            _kept.scratch = torch.empty((2, size))
    return _kept.scratch
