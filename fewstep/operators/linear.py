"""A linear measurement of the user's own, as a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.core.noise import Noise
from fewstep.operators.krylov import dot
from fewstep.operators.operator import LinearOperator

METHODS = (
    Method(
        "linear",
        claim="any linear function of samples; its adjoint is found by differentiation where none is given",
        use="Linear",
    ),
)

ADJOINT = 1e-3  # by which the two sides of an adjoint's test may differ, beside the product of the lengths


class Linear(LinearOperator):
    """`y = forward(x)` of samples `(B, *shape)`, each alone.

    Args:
        forward: linear, of torch operations that can be differentiated unless `adjoint` is given.
        shape: of a sample. adjoint: `A^T y`; checked on random vectors.
        dtype: the one in which the functions compute, where they take no other; by default that of the samples.
        check: whether both are tested (`fs.check_operator` tests more, and says all that it finds).

    Raises:
        ValueError: a function that makes something of zeros, or an adjoint that is none.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        shape: Sequence[int],
        adjoint: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype | None = None,
        check: bool = True,
    ):
        super().__init__()
        self.function, self.back, self.wanted, self.dtype = forward, adjoint, tuple(shape), dtype
        self.check = check
        self.fit(self.wanted)

    def config(self) -> dict[str, Any]:
        raise ValueError("a linear operator around a function cannot be saved: give its matrix (fs.operators.Matrix)")

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape != self.wanted:
            raise ValueError(f"{self} measures samples of shape {self.wanted}, not {shape}")
        dtype = self.dtype or torch.float64
        nothing = self.function(torch.zeros(1, *shape, dtype=dtype))
        if self.check and bool(nothing.any()):
            raise ValueError(f"forward is not linear: it makes values up to {float(nothing.abs().max()):g} of zeros")
        out = tuple(nothing.shape[1:])
        if self.check and self.back is not None:
            x, y = (Noise(0).normal(draw, (1, *size), dtype=dtype) for draw, size in enumerate((shape, out)))
            image, back = self.function(x), self.back(y)
            if tuple(back.shape[1:]) != shape:
                raise ValueError(f"the adjoint makes {tuple(back.shape[1:])} of a measurement, not samples {shape}")
            off = float((dot(image, y) - dot(x, back)).abs() / (dot(image, image) * dot(y, y)).sqrt().clamp_min(1e-300))
            if off > ADJOINT:
                raise ValueError(
                    f"the adjoint given is none: <A x, y> and <x, A^T y> differ by {100 * off:.3g} % of |A x| |y|;"
                    " without one it is found by differentiation"
                )
        return out

    def act(self, x: Tensor) -> Tensor:
        return self.function(x.to(self.dtype or x.dtype)).to(x.dtype)

    def transpose(self, y: Tensor) -> Tensor:
        return super().transpose(y) if self.back is None else self.back(y.to(self.dtype or y.dtype)).to(y.dtype)

    def __str__(self) -> str:
        return f"linear({getattr(self.function, '__name__', type(self.function).__name__)})"
