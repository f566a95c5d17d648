"""Inpainting: a measurement that sees some elements of a sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.operators.operator import LinearOperator
from fewstep.operators.spectrum import Chosen, Spectrum

METHODS = (
    Method("inpaint", claim="the elements that a mask lets through; the rest of the measurement is 0", use="Inpaint"),
    Method("identity", claim="the sample itself: denoising", use="Identity"),
)


class Inpaint(LinearOperator):
    """`y = mask x`: 1 is seen, 0 is not, and what lies between is seen weaker.

    mask: a tensor in 0 to 1 of a sample's shape, or of one that expands to it.
    """

    given: Tensor
    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__()
        values = torch.as_tensor(mask, dtype=torch.float64)
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(
                f"a mask lies between 0 (unseen) and 1 (seen), got {float(values.min()):g} to {float(values.max()):g}"
            )
        if not bool((values > 0).any()):
            raise ValueError("the mask is 0 everywhere: nothing is measured")
        self.register_buffer("given", values, persistent=False)
        self.register_buffer("mask", values, persistent=False)

    def config(self) -> dict[str, Any]:
        return {"mask": self.given}

    @property
    def holds(self) -> Tensor | None:
        return None if self.shape is None else self.mask > 0

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        try:
            self.mask = self.given.expand(shape)
        except RuntimeError:
            raise ValueError(f"a mask of shape {tuple(self.given.shape)} does not fit samples of {shape}") from None
        return shape

    def act(self, x: Tensor) -> Tensor:
        return x * self.mask.to(x.dtype)

    def transpose(self, y: Tensor) -> Tensor:
        return y * self.mask.to(y.dtype)

    def find_spectrum(self) -> Spectrum:
        assert self.shape is not None
        values = self.mask.flatten()
        return Chosen(values, torch.arange(len(values), device=values.device), self.shape, self.out)


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
