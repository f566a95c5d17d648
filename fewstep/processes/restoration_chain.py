"""A chain of degradations: each level averages blocks of pixels, fades what is left and adds noise.

Level 0 is the data; a state of level k may be smaller than one of level k - 1. All laws are exact, because averages of
white noise are white. It is no process of one shape, so no solver runs it: a restorer does
(`fewstep.denoisers.restorer`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


def average(x: Tensor, factor: int) -> Tensor:
    """Means of blocks of factor x factor pixels: (B, C, H, W) to (B, C, H / factor, W / factor). 1 changes nothing."""
    return x if factor == 1 else F.avg_pool2d(x, factor)


def spread(y: Tensor, factor: int) -> Tensor:
    """The pseudo-inverse of `average`: every value fills its block. (B, C, h, w) to (B, C, factor h, factor w)."""
    return y if factor == 1 else y.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


@dataclass(frozen=True)
class RestorationChain:
    """`y_k = fade_k average(y_{k-1}, factor_k) + std_k n`, k from 1 to `levels` (Choi et al., 2023, arXiv:2303.05456).

    So `y_k = alpha_k average(x0, block_k) + sigma_k n` with `alpha_k` the product of the fades, `block_k` that of the
    factors, and `sigma_k^2 = (fade_k sigma_{k-1} / factor_k)^2 + std_k^2`.

    With factors of 1 it is a diffusion of few steps, for data of any shape. The last level should hold next to nothing
    of the data (`alpha` small), because `sample` starts from pure noise.

    Args:
        fades, stds, factors: one per level; factors, by default all 1, must divide a picture's sides in turn.

    Raises:
        ValueError: no level, lists of different lengths, fades outside (0, 1], stds or factors that are not positive.
    """

    fades: tuple[float, ...]
    stds: tuple[float, ...]
    factors: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("fades", "stds", "factors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.factors:
            object.__setattr__(self, "factors", (1,) * len(self.fades))
        if not self.fades or not len(self.fades) == len(self.stds) == len(self.factors):
            sizes = len(self.fades), len(self.stds), len(self.factors)
            raise ValueError(f"fades, stds and factors need one number a level, got {sizes[0]}, {sizes[1]}, {sizes[2]}")
        if not all(0 < fade <= 1 for fade in self.fades) or not all(0 < std < math.inf for std in self.stds):
            raise ValueError(f"fades must lie in (0, 1] and stds above 0, got {self.fades} and {self.stds}")
        if not all(factor >= 1 for factor in self.factors):
            raise ValueError(f"factors must be at least 1, got {self.factors}")

    @classmethod
    def preserving(cls, alphas: Sequence[float], factors: Sequence[int] = ()) -> RestorationChain:
        """The chain with these falling alphas, its noise chosen so that `alpha_k^2 + sigma_k^2 = 1` at every level.

        Raises ValueError for alphas that do not fall within (0, 1).
        """
        blocks, fades, stds = tuple(factors) or (1,) * len(alphas), [], []
        before, sigma = 1.0, 0.0
        for alpha, factor in zip(alphas, blocks, strict=True):
            fade, target = alpha / before, 1 - alpha**2
            left = target - (fade * sigma / factor) ** 2
            if not 0 < alpha < before or left <= 0:
                raise ValueError(f"alphas must fall and lie in (0, 1), got {tuple(alphas)}")
            fades.append(fade)
            stds.append(math.sqrt(left))
            before, sigma = alpha, math.sqrt(target)
        return cls(tuple(fades), tuple(stds), blocks)

    @property
    def levels(self) -> int:
        return len(self.fades)

    def alpha(self, k: int) -> float:
        """How much of the data's averages level k holds."""
        return math.prod(self.fades[:k])

    def block(self, k: int) -> int:
        """The side of the blocks, in pixels of the data, that level k has averages of."""
        return math.prod(self.factors[:k])

    def sigma(self, k: int) -> float:
        """Standard deviation of the noise in level k."""
        variance = 0.0
        for fade, std, factor in zip(self.fades[:k], self.stds[:k], self.factors[:k], strict=True):
            variance = (fade / factor) ** 2 * variance + std**2
        return math.sqrt(variance)

    def shape(self, k: int, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of level k of data of this shape. `ValueError` where blocks do not divide it."""
        block = self.block(k)
        if block == 1:
            return tuple(shape)
        if len(shape) != 3 or shape[1] % block or shape[2] % block:
            raise ValueError(f"blocks of {block}x{block} pixels do not divide data of shape {tuple(shape)}")
        return shape[0], shape[1] // block, shape[2] // block

    def operator(self, x0: Tensor, k: int) -> Tensor:
        """`A_k x0`, what level k holds but for its noise."""
        return self.alpha(k) * average(x0, self.block(k))

    def adjust(self, y: Tensor, k: int) -> Tensor:
        """A state of level k in the data's shape, every block filled: what a network sees."""
        return spread(y, self.block(k))

    def degrade(self, x0: Tensor, k: int, normal: Tensor) -> Tensor:
        """A draw of level k given the data; normal is standard noise of the level's shape."""
        return self.operator(x0, k) + self.sigma(k) * normal

    def step(self, y: Tensor, k: int, normal: Tensor) -> Tensor:
        """A draw of level k given the state y of level k - 1."""
        return self.fades[k - 1] * average(y, self.factors[k - 1]) + self.stds[k - 1] * normal

    def fidelity(self, x0: Tensor, y: Tensor, k: int) -> Tensor:
        """`|A_k x0 - y|^2 / (2 sigma_k^2)` per number of y: minus the log-likelihood of x0, (B,), up to a constant.

        It is 1/2 on average where x0 is the data that y came from.
        """
        return (self.operator(x0, k) - y).square().flatten(1).mean(1) / (2 * self.sigma(k) ** 2)

    def start(self, shape: Sequence[int], normal: Tensor) -> Tensor:
        """The last level's state, from which restoring begins, made from standard noise of its shape."""
        expected = self.shape(self.levels, shape)
        if tuple(normal.shape[1:]) != expected:
            raise ValueError(f"the last level has shape (B, *{expected}), got noise of shape {tuple(normal.shape)}")
        return self.sigma(self.levels) * normal
