"""A number as an input of the network, such as the guidance scale that was distilled into it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.core.arguments import check_kind
from fewstep.core.methods import Method

METHODS = (Method("number", claim="one finite number per sample, within a range", use="Number"),)


@dataclass(frozen=True)
class Number:
    """One number per sample, from `low` to `high`, both included; None is no bound.

    default: its value where none is given; None where one is required. Guidance does not change it.

    Raises:
        ValueError: bounds that do not increase, a default that is not finite or lies outside them.
    """

    guides: ClassVar[bool] = False
    low: float | None = None
    high: float | None = None
    default: float | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high", "default"):
            check_kind(name, getattr(self, name), float | None)
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"the range of a number must rise, got {self.low} to {self.high}")
        if self.default is not None and not (math.isfinite(self.default) and self._within(self.default)):
            raise ValueError(f"the default must be a finite number{self._range()}, got {self.default}")

    def config(self) -> dict[str, Any]:
        return {"kind": "number", "low": self.low, "high": self.high, "default": self.default}

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor:
        """The condition as `(batch,)` float32, from None (the default), a number, a list or a tensor of one or `batch`.

        Raises:
            ValueError: no number where there is no default; one that is not finite or outside the range; another
                count of them.
        """
        if value is None:
            value = self.default
        if value is None:
            raise ValueError(f"this model needs {name}, a number{self._range()}")
        if isinstance(value, Tensor):
            if value.is_complex() or value.dtype == torch.bool:
                raise ValueError(f"{name} must be a finite number{self._range()}, got {value.dtype}")
            numbers = value.detach()
        else:
            each = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            if not each or any(isinstance(one, bool) or not isinstance(one, Real) for one in each):
                raise ValueError(f"{name} must be a finite number{self._range()}, got {value!r}")
            numbers = torch.tensor([float(one) for one in each], dtype=torch.float64)
        if numbers.ndim > 1 or numbers.numel() not in (1, batch):
            raise ValueError(f"{name} must be one number or {batch} of them, got shape {tuple(numbers.shape)}")
        for one in numbers.reshape(-1).tolist():
            if not (math.isfinite(one) and self._within(one)):
                raise ValueError(f"{name} must be a finite number{self._range()}, got {one:g}")
        return (value if isinstance(value, Tensor) else numbers).to(device, torch.float32).expand(batch)

    def _within(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def _range(self) -> str:
        ends = [f"at least {self.low:g}"] if self.low is not None else []
        ends += [f"at most {self.high:g}"] if self.high is not None else []
        return f" of {' and '.join(ends)}" if ends else ""
