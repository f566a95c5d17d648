"""Measurements that are not linear: magnitudes, clipping, gamma curves, and functions of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.operators.fourier import Fourier
from fewstep.operators.operator import LinearOperator, Operator, size_axes

METHODS = (
    Method(
        "magnitude",
        paper="Phase retrieval algorithms: a comparison (Fienup, 1982)",
        claim="phase retrieval: the magnitudes of an oversampled Fourier transform, or of any linear A",
        use="Magnitude",
        facts={"of": "operators"},
    ),
    Method("clip", claim="values beyond a range are cut off: what was too bright or too dark", use="Clip"),
    Method("gamma", claim="a power of the brightness: the curve of a screen or camera", use="Gamma"),
    Method("nonlinear", claim="any function of samples that can be differentiated", use="Nonlinear"),
)

FLAT = 1e-6  # brightness below which a power with an infinite slope at 0 is taken as straight


class Magnitude(Operator):
    """`|A x|`. Of complex A (a `Fourier`) the moduli `(K, *size)`, else the absolute values.

    of: a linear operator A, or how many times as large along every axis the sample is made, with zeros around it,
    before its orthonormal Fourier transform: `(C, *(of size))`; from 2 on the answer nearly always tells the sample.
    """

    def __init__(self, of: int | Operator = 2):
        super().__init__()
        if isinstance(of, Operator):
            if not isinstance(of, LinearOperator):
                raise ValueError(f"magnitudes are those of a linear operator, and {of} is none")
        elif isinstance(of, bool) or not isinstance(of, int) or of < 1:
            raise ValueError(f"magnitudes take a linear operator or a whole factor of oversampling, got {of!r}")
        self.factor = of if isinstance(of, int) else None
        self.inner = of if isinstance(of, LinearOperator) else None

    def config(self) -> dict[str, Any]:
        return {"of": self.factor or self.inner}

    def __str__(self) -> str:
        return f"magnitude:{self.factor}" if self.inner is None else f"magnitude({self.inner})"

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axes = size_axes(shape)
        if self.inner is None:
            return tuple(n * (self.factor or 1) if axis in axes else n for axis, n in enumerate(shape))
        out = self.inner.measured(shape)
        return (out[0] // 2, *out[1:]) if isinstance(self.inner, Fourier) else out

    def act(self, x: Tensor) -> Tensor:
        if self.inner is not None:
            y = self.inner(x)
            return torch.complex(y[:, ::2], y[:, 1::2]).abs() if isinstance(self.inner, Fourier) else y.abs()
        axes = [axis + 1 for axis in size_axes(x.shape[1:])]
        wide = x.double() if x.dtype == torch.float64 else x.float()
        sizes = [x.shape[axis] * (self.factor or 1) for axis in axes]
        return torch.fft.fftn(wide, sizes, axes, norm="ortho").abs().to(x.dtype)


class _Values(Operator):
    """Of each value alone."""

    def __init__(self, low: float, high: float):
        super().__init__()
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"a range runs from a lower to a higher number, got {low:g} to {high:g}")
        self.low, self.high = float(low), float(high)

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape


class Clip(_Values):
    """Values beyond `low` to `high` are cut off."""

    def __init__(self, low: float = -0.5, high: float = 0.5):
        super().__init__(low, high)

    def config(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}

    def act(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)


class Gamma(_Values):
    """`(x - low) / (high - low)` to a power, brought back to the range; beyond it as an odd function around `low`."""

    def __init__(self, power: float = 2.2, low: float = -1.0, high: float = 1.0):
        super().__init__(low, high)
        if not (math.isfinite(power) and power > 0):
            raise ValueError(f"the power of a gamma curve is positive, got {power}")
        self.power = float(power)

    def config(self) -> dict[str, Any]:
        return {"power": self.power, "low": self.low, "high": self.high}

    def act(self, x: Tensor) -> Tensor:
        share = (x - self.low) / (self.high - self.low)
        # Share times a power that is never of less than `FLAT`: finite slopes everywhere.
        return self.low + (self.high - self.low) * share * share.abs().clamp_min(FLAT) ** (self.power - 1)


class Nonlinear(Operator):
    """`y = function(x)` of samples `(B, *shape)`, each alone; its Jacobian is found by differentiation."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def config(self) -> dict[str, Any]:
        raise ValueError("a nonlinear operator around a function cannot be saved")

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.function(torch.zeros(1, *shape)).shape[1:])

    def act(self, x: Tensor) -> Tensor:
        return self.function(x)

    def __str__(self) -> str:
        return f"nonlinear({getattr(self.function, '__name__', type(self.function).__name__)})"
