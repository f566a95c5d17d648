"""How far a student's sample is from its target, one number a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.distillation.features import Read, default_blocks

Distance = Callable[[Tensor, Tensor], Tensor]  # (B, *shape) twice to (B,)
HUBER = 0.00054  # of the square root of a sample's size (iCT, section 3.3)


def squared(a: Tensor, b: Tensor) -> Tensor:
    """The mean square."""
    return (a - b).square().flatten(1).mean(1)


def l1(a: Tensor, b: Tensor) -> Tensor:
    """The mean of the absolute differences."""
    return (a - b).abs().flatten(1).mean(1)


def pseudo_huber(c: float | None = None) -> Distance:
    """`sqrt(|a - b|^2 + c^2) - c`, by default with `c = 0.00054 sqrt(d)`, d the numbers of a sample (Song and Dhariwal,
    2310.14189, eq. 7): the norm, smooth at 0.

    Raises:
        ValueError: a c that is not positive.
    """
    if c is not None and not c > 0:
        raise ValueError(f"c of the pseudo-Huber distance must be positive, got {c}")

    def distance(a: Tensor, b: Tensor) -> Tensor:
        size = HUBER * math.sqrt(a[0].numel()) if c is None else c
        # |e|^2 / (sqrt(|e|^2 + c^2) + c) is the same without a difference of nearly equal numbers.
        total = (a - b).square().flatten(1).sum(1)
        return total / ((total + size**2).sqrt() + size)

    return distance


class Features:
    """The mean square of the differences of a frozen network's features.

    Args:
        model: whose network runs, at the smallest noise of its process. blocks: whose outputs are compared, by default
            the one in the middle.

    Raises:
        ValueError: an unknown block, or a network that names none.
    """

    def __init__(self, model: Denoiser, blocks: Sequence[str] | None = None) -> None:
        self.read = Read(model, blocks or default_blocks(model))

    def of(self, x: Tensor, condition: Mapping[str, Any]) -> list[Tensor]:
        """(B, ...) features of samples (B, *shape)."""
        t = torch.full((len(x),), float(self.read.model.process.t_min), dtype=torch.float64, device=x.device)
        return list(self.read(x, t, condition)[1].values())

    def __call__(self, a: Tensor, b: Tensor, condition: Mapping[str, Any]) -> Tensor:
        """(B,) distances; gradients run into a and b."""
        pairs = zip(self.of(a, condition), self.of(b, condition), strict=True)
        return torch.stack([squared(one, other) for one, other in pairs]).sum(0)


DISTANCES = ("squared", "pseudo-huber", "l1")


def distance(name: str, c: float | None = None) -> Distance:
    """The distance of a name; c: of "pseudo-huber". `ValueError` for an unknown one."""
    if name not in DISTANCES:
        raise suggest("distance", name, DISTANCES)
    return {"squared": squared, "l1": l1}.get(name) or pseudo_huber(c)
