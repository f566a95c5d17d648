"""JPEG: cosine transforms of blocks, rounded."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.methods import Method
from fewstep.operators.cosine import cosine_matrix
from fewstep.operators.operator import Operator

METHODS = (
    Method(
        "jpeg",
        paper="The JPEG Still Picture Compression Standard (Wallace, 1992)",
        claim="what JPEG leaves of a picture, with a gradient that goes straight through the rounding",
        use="Jpeg",
    ),
)

# The tables of the standard (ITU-T T.81, Annex K), for quality 50.
LUMA = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
CHROMA = """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""
BLOCK = 8
HALF = 1e-4  # below a half counts as one: of whole numbers they are frequent, and float32 may fall short of them
FROM_RGB = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))  # JFIF


def quantisation(table: str, quality: int) -> Tensor:
    """The steps `(8, 8)` of a quality, as the Independent JPEG Group scales the tables."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    values = torch.tensor([int(word) for word in table.split()], dtype=torch.float64).reshape(BLOCK, BLOCK)
    return ((values * scale + 50) / 100).floor().clamp(1, 255)


class Jpeg(Operator):
    """What is left of pictures `(1 or 3, H, W)` after JPEG: what its file says, from bytes to bytes.

    The gradient is that of no rounding.

    Args:
        quality: 1 to 100. halved: whether the colours are kept at half the size, as cameras do.
        low, high: the values of black and white.
    """

    luma: Tensor
    chroma: Tensor

    def __init__(self, quality: int = 50, halved: bool = True, low: float = -1.0, high: float = 1.0):
        super().__init__()
        if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
            raise ValueError(f"the quality of JPEG is a whole number from 1 to 100, got {quality!r}")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"a range runs from a lower to a higher number, got {low:g} to {high:g}")
        self.quality, self.halved, self.low, self.high = quality, halved, float(low), float(high)
        self.register_buffer("luma", quantisation(LUMA, quality), persistent=False)
        self.register_buffer("chroma", quantisation(CHROMA, quality), persistent=False)
        self.register_buffer("mixing", torch.tensor(FROM_RGB, dtype=torch.float64), persistent=False)

    mixing: Tensor

    def config(self) -> dict[str, Any]:
        return {"quality": self.quality, "halved": self.halved, "low": self.low, "high": self.high}

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(f"JPEG is for pictures (1 or 3, H, W), not for samples of shape {shape}")
        return shape

    def act(self, x: Tensor) -> Tensor:
        levels = _rounded((x - self.low) / (self.high - self.low) * 255) - 128
        if x.shape[1] == 1:
            levels = self._coded(levels, self.luma)
        else:
            mixing = self.mixing.to(x.dtype)
            luma, chroma = torch.einsum("dc,bchw->bdhw", mixing, levels).split((1, 2), 1)
            luma, chroma = _rounded(luma), _rounded(chroma)
            # JFIF takes 128 from the brightness alone: colours are differences already.
            parts = self._coded(luma, self.luma), self._colours(chroma)
            levels = torch.einsum("cd,bdhw->bchw", torch.linalg.inv(self.mixing).to(x.dtype), torch.cat(parts, 1))
        return (_rounded(levels.clamp(-128, 127)) + 128) / 255 * (self.high - self.low) + self.low

    def _colours(self, chroma: Tensor) -> Tensor:
        if not self.halved:
            return self._coded(chroma, self.chroma)
        height, width = chroma.shape[2:]
        small = _rounded(F.avg_pool2d(_even(chroma, 2), 2))
        return self._coded(small, self.chroma).repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :height, :width]

    def _coded(self, levels: Tensor, table: Tensor) -> Tensor:
        """Channels `(B, C, H, W)` around 0, their blocks' frequencies rounded to the steps of a table."""
        height, width = levels.shape[2:]
        blocks = _even(levels, BLOCK).unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(3, 4)
        dct, steps = cosine_matrix(BLOCK).to(levels), table.to(levels.dtype)
        back = _rounded(dct.mT @ (_rounded(dct @ blocks @ dct.mT / steps) * steps) @ dct)
        return back.transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., :height, :width]


def _rounded(x: Tensor) -> Tensor:
    """To whole numbers, halves away from zero as coders have it, with the gradient of the identity."""
    whole = x.sign() * (x.abs() + 0.5 + HALF).floor()
    return x + (whole - x).detach()


def _even(x: Tensor, side: int) -> Tensor:
    """Continued by its last row and column to sizes that a side divides."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % side, 0, -height % side), mode="replicate") if height % side or width % side else x
