"""A process time as an input of the network: the one to which a flow map jumps."""

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

METHODS = (
    Method(
        "time",
        paper="Consistency Trajectory Models: Learning Probability Flow ODE Trajectory of Diffusion (Kim et al., 2024)",
        arxiv="2310.02279",
        claim="one process time per sample, or none: the state's own",
        use="Time",
    ),
)


@dataclass(frozen=True)
class Time:
    """One process time per sample, from `low` to `high`, both included; None is no bound.

    Left out it is the time of the state itself, which in tensors is NaN (`aimed`). Guidance does not change it.

    Raises:
        ValueError: bounds that do not increase.
    """

    guides: ClassVar[bool] = False
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            check_kind(name, getattr(self, name), float | None)
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"the range of a time must rise, got {self.low} to {self.high}")

    def config(self) -> dict[str, Any]:
        return {"kind": "time", "low": self.low, "high": self.high}

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor:
        """The times as `(batch,)` float64, from None, a number, a list or a tensor of one or `batch`.

        Raises:
            ValueError: a time that is not finite (in tensors, NaN is none) or outside the range; another count of them.
        """
        if value is None:
            return torch.full((batch,), math.nan, dtype=torch.float64, device=device)
        if isinstance(value, Tensor):
            if value.is_complex() or value.dtype == torch.bool:
                raise ValueError(f"{name} must be a finite time{self._range()}, got {value.dtype}")
            times = value.detach()
        else:
            each = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            if not each or any(isinstance(one, bool) or not isinstance(one, Real) for one in each):
                raise ValueError(f"{name} must be a finite time{self._range()}, got {value!r}")
            times = torch.tensor([float(one) for one in each], dtype=torch.float64)
        if times.ndim > 1 or times.numel() not in (1, batch):
            raise ValueError(f"{name} must be one time or {batch} of them, got shape {tuple(times.shape)}")
        for one in times.reshape(-1).tolist():
            if not (self._within(one) or (math.isnan(one) and isinstance(value, Tensor))):
                raise ValueError(f"{name} must be a finite time{self._range()}, got {one:g}")
        return (value if isinstance(value, Tensor) else times).to(device, torch.float64).expand(batch)

    def _within(self, value: float) -> bool:
        low, high = self.low is None or value >= self.low, self.high is None or value <= self.high
        return math.isfinite(value) and low and high

    def _range(self) -> str:
        ends = [f"at least {self.low:g}"] if self.low is not None else []
        ends += [f"at most {self.high:g}"] if self.high is not None else []
        return f" of {' and '.join(ends)}" if ends else ""


def aimed(to: Tensor | None, t: Tensor) -> Tensor:
    """The times to jump to, in t's dtype: `to` `(B,)`, and the time t of the state where that is none."""
    if to is None:
        return t
    to = to.to(t.dtype)
    return torch.where(to.isnan(), t, to)
