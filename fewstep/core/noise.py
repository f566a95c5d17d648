"""Noise that belongs to the sample, not to the batch: a counter-based generator in tensor operations.

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) keyed by the seed, its counter made
of (position in the sample, number of the draw, number of the sample). So draw k of sample i is a function of
(seed, i, k) alone: the same in a batch of 1 or 8, on one device or four. Normals follow by Box-Muller. The logarithm,
sine and cosine are our own polynomials of exactly rounded operations (+, *, /, sqrt), because library versions of
these functions differ in the last bit between devices and between vector and scalar code.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int] | tuple[Tensor, Tensor]
) -> tuple[Tensor, ...]:
    """Ten rounds of Philox-4x32 on int64 tensors that hold 32-bit words (they broadcast against each other)."""
    c0, c1, c2, c3 = counter
    k0: int | Tensor
    k1: int | Tensor
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap, but their 64 bits are right; the shift is arithmetic, so the high word is masked.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> 32).bitwise_and_(_MASK).bitwise_xor(c1).bitwise_xor_(k0),
            p1 & _MASK,
            (p0 >> 32).bitwise_and_(_MASK).bitwise_xor(c3).bitwise_xor_(k1),
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    y = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        y.mul_(x).add_(c)  # two roundings on every device: never one fused multiply-add
    return y


# log m = 2 atanh((m - 1) / (m + 1)), |s| <= 0.172 on [sqrt(1/2), sqrt(2)]: nine terms leave 1e-15.
_ATANH = [2 / (2 * k + 1) for k in range(9)]
# Taylor series about 0 on [-pi, pi]: fifteen terms leave 1e-15. No reduction, hence no selection, which is slower.
_SIN = [(-1) ** k / math.factorial(2 * k + 1) for k in range(15)]
_COS = [(-1) ** k / math.factorial(2 * k) for k in range(15)]


def _log(u: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(u)  # exact: mantissa in [1/2, 1)
    mantissa.mul_(math.sqrt(2))
    s = (mantissa - 1).div_(mantissa.add_(1))
    return _polynomial(s * s, _ATANH).mul_(s).add_(exponent.double().sub_(0.5).mul_(math.log(2)))


def _circle(turn: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of `2 pi turn`, turn in [-1/2, 1/2]."""
    angle = turn * (2 * math.pi)
    square = angle * angle
    return _polynomial(square, _COS), _polynomial(square, _SIN).mul_(angle)


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

    Draw 0 is the initial noise of a run, draws 1, 2, ... are those of its steps.
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
        sample = torch.arange(self.first, self.first + shape[0], device=device).unsqueeze(1)
        seed = operator.index(self.seed) & 0xFFFFFFFFFFFFFFFF
        return _normals(sample, (seed & _MASK, seed >> 32), draw, shape).to(dtype)


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
        if shape[0] != len(self.seeds):
            raise ValueError(f"there are {len(self.seeds)} seeds for a batch of {shape[0]}")
        seeds = [operator.index(seed) & 0xFFFFFFFFFFFFFFFF for seed in self.seeds]
        low, high = ([[word] for word in words] for words in ([s & _MASK for s in seeds], [s >> 32 for s in seeds]))
        key = torch.tensor(low, device=device), torch.tensor(high, device=device)
        sample = torch.tensor(self.numbers, device=device).unsqueeze(1)
        return _normals(sample, key, draw, shape).to(dtype)


def _normals(sample: Tensor, key: tuple[int, int] | tuple[Tensor, Tensor], draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normals of `shape`, float64: of draw `draw` of samples `(B, 1)` under a key, one for all or `(B, 1)`."""
    size, device = math.prod(shape[1:]), sample.device
    blocks = (size + 3) // 4  # one counter gives four words: two pairs of normals
    position = torch.arange(blocks, device=device).unsqueeze(0)
    words = philox(
        (
            position,  # the four broadcast against each other, and are full after two rounds
            torch.full((1, 1), draw, device=device, dtype=torch.int64),
            sample & _MASK,
            sample >> 32,
        ),
        key,
    )
    bits = torch.cat(words, dim=1).double()  # (B, 4 blocks): the first half gives radii, the second angles
    radius = _log(bits[:, : 2 * blocks].add_(0.5).mul_(2.0**-32)).mul_(-2).sqrt_()
    c, s = _circle(bits[:, 2 * blocks :].mul_(2.0**-32).sub_(0.5))
    normals = torch.cat((c.mul_(radius), s.mul_(radius)), dim=1)
    return normals[:, :size].reshape(shape)
