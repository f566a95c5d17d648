"""Inpainting: a measurement that sees some elements of a sample."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.core.errors import suggest
from fewstep.core.methods import Method
from fewstep.core.pictures import mask_values
from fewstep.operators.operator import LinearOperator, size_axes, spelt
from fewstep.operators.spectrum import Chosen, Spectrum

METHODS = (
    Method("inpaint", claim="the elements that a mask lets through; the rest of the measurement is 0", use="Inpaint"),
    Method("identity", claim="the sample itself: denoising", use="Identity"),
)


def box(size: tuple[int, ...], share: float, seed: int) -> Tensor:
    """All but a box in the middle, which has as large a part of each side."""
    part = (1 - share) ** (1 / len(size))
    hole = torch.ones(())
    for n in size:
        width = round(part * n)
        first = (n - width) // 2
        places = torch.arange(n)
        hole = hole[..., None] * ((places >= first) & (places < first + width))
    return 1 - hole


def half(size: tuple[int, ...], share: float, seed: int) -> Tensor:
    """The first ones along the last axis."""
    return (torch.arange(size[-1]) < round(share * size[-1])).float().expand(size)


def random(size: tuple[int, ...], share: float, seed: int) -> Tensor:
    """Any ones, exactly so many, of all channels at once."""
    n = math.prod(size)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return (order < round(share * n)).float().reshape(size)


def stripes(size: tuple[int, ...], share: float, seed: int) -> Tensor:
    """Lines across the first axis, as evenly as may be."""
    place = torch.arange(size[0], dtype=torch.float64)
    seen = ((place + 1) * share + 1e-9).floor() > (place * share + 1e-9).floor()
    return seen.float().reshape(-1, *[1] * (len(size) - 1)).expand(size)


SHARED: dict[str, Callable[[tuple[int, ...], float, int], Tensor]] = {
    "box": box,
    "half": half,
    "random": random,
    "stripes": stripes,
}
NAMES = (*SHARED, "bayer")


def bayer(shape: tuple[int, ...]) -> Tensor:
    """The filter on a camera's sensor: red and green in one row, green and blue in the next."""
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(f"a Bayer mask is for pictures of three colours (3, H, W), not {shape}")
    mask = torch.zeros(shape)
    mask[0, ::2, ::2] = mask[1, ::2, 1::2] = mask[1, 1::2, ::2] = mask[2, 1::2, 1::2] = 1
    return mask


class Inpaint(LinearOperator):
    """`y = mask x`: 1 is seen, 0 is not, and what lies between is seen weaker.

    Args:
        mask: a tensor or array in 0 to 1 of a sample's shape, or of one that expands to it; a Pillow picture or the
            path of one, white where it is seen; or "box" (a hole in the middle), "half" (its left part is seen),
            "random" (pixels), "stripes" (rows) or "bayer".
        share: of what is seen, for the four that have one, by default a half. seed: of "random".

    Raises:
        ValueError: another mask, or one outside 0 to 1, of another shape, or 0 everywhere.
    """

    given: Tensor | None
    mask: Tensor

    def __init__(self, mask: Any, share: float | None = None, seed: int | None = None):
        super().__init__()
        named = isinstance(mask, str) and mask in NAMES
        if isinstance(mask, str) and not named and not os.path.splitext(mask)[1]:
            raise suggest("mask", mask, NAMES)
        if share is not None and not (named and mask in SHARED):
            raise ValueError(f"a share is for the masks {', '.join(SHARED)}: this one says itself what is seen")
        if seed is not None and not (named and mask == "random"):
            raise ValueError("a seed is for the mask 'random': this one has no chance in it")
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"the share that a mask shows lies above 0 and at most at 1, got {share}")
        self.name: str | None = mask if named else None
        self.file = os.fspath(mask) if isinstance(mask, str | os.PathLike) and not named else None
        self.share, self.seed = share, seed
        values = None if named else _checked(mask_values(mask, "mask"))
        self.register_buffer("given", values, persistent=False)
        self.register_buffer("mask", values, persistent=False)

    def config(self) -> dict[str, Any]:
        named = {"share": self.share, "seed": self.seed} if self.name else {}
        return {"mask": self.name or self.given} | {key: value for key, value in named.items() if value is not None}

    @property
    def holds(self) -> Tensor | None:
        return None if self.shape is None else self.mask > 0

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        values = self.given
        if values is None:
            size = tuple(shape[axis] for axis in size_axes(shape))
            share = 0.5 if self.share is None else self.share
            made = bayer(shape) if self.name == "bayer" else SHARED[str(self.name)](size, share, self.seed or 0)
            values = _checked(made)
        try:
            self.mask = values.expand(shape)
        except RuntimeError:
            raise ValueError(f"a mask of shape {tuple(values.shape)} does not fit samples of {shape}") from None
        return shape

    def act(self, x: Tensor) -> Tensor:
        return x * self.mask.to(x.dtype)

    def transpose(self, y: Tensor) -> Tensor:
        return y * self.mask.to(y.dtype)

    def find_spectrum(self) -> Spectrum:
        assert self.shape is not None
        values = self.mask.flatten()
        return Chosen(values, torch.arange(len(values), device=values.device), self.shape, self.out)

    def __str__(self) -> str:
        return f"inpaint:{self.file}" if self.file else spelt(self)


def _checked(mask: Tensor) -> Tensor:
    if not bool((mask > 0).any()):
        raise ValueError("the mask is 0 everywhere: nothing is measured")
    return mask.double()


class Identity(LinearOperator):
    """`y = x`: what is restored is the noise alone."""

    def config(self) -> dict[str, Any]:
        return {}

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def act(self, x: Tensor) -> Tensor:
        return x

    def transpose(self, y: Tensor) -> Tensor:
        return y

    def along(self) -> tuple[Tensor | None, ...]:
        assert self.shape is not None
        return (None,) * len(self.shape)
