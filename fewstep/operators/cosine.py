"""The orthonormal cosine transform along an axis, as a matrix."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


@functools.lru_cache(maxsize=64)
def cosine_matrix(n: int) -> Tensor:
    """The DCT-II `(n, n)` in float64: rows are frequencies, and its transpose is its inverse."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi * (i + 0.5) * k / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix
