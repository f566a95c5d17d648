"""A denoiser: `denoiser(x, t, **condition) -> Prediction`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.errors import suggest
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process


@dataclass(frozen=True)
class Label:
    """A class label in [0, classes); None means "no label", which in tensors is the index `classes`."""

    classes: int

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor:
        """The condition as a `(batch,)` long tensor; `ValueError` when out of range or of another length."""
        if value is None:
            value = self.classes
        elif isinstance(value, int) and value == self.classes:
            raise ValueError(f"{name} {value} is out of range: 0 to {value - 1}, or None for no label")
        try:
            labels = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name} must be whole numbers, got {value!r}") from None
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"{name} must be whole numbers, got {labels.dtype}")
        if labels.ndim > 1 or (labels.ndim == 1 and labels.shape[0] not in (1, batch)):
            raise ValueError(f"{name} must be one number or {batch} of them, got shape {tuple(labels.shape)}")
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) > self.classes):
            bad = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
            raise ValueError(f"{name} {bad} is out of range: 0 to {self.classes - 1}, or None for no label")
        return labels.long().expand(batch).to(device)


class Denoiser(nn.Module):
    """Base of everything that predicts: networks, closed forms, and whatever wraps them.

    `forward(x, t, **condition)` takes `x` `(B, *shape)` and `t`, a scalar or `(B,)` tensor of process times.
    `shape` is one sample's shape, or None where any will do; `conditions` names what may be asked for;
    `value_range` is the range of the data, or None.
    """

    process: Process
    shape: tuple[int, ...] | None = None
    conditions: Mapping[str, Label] = {}
    value_range: tuple[float, float] | None = None
    plan: Plan | None = None  # the plan that samples it best, where one was found

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        raise NotImplementedError

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        """The conditions as tensors; `ValueError` for a name this denoiser does not know.

        A condition that is not given is passed as its empty value.
        """
        for name, value in condition.items():
            if name not in self.conditions:
                if self.conditions:
                    raise suggest("condition", name, self.conditions)
                if value is None:
                    continue
                raise ValueError(f"this model is unconditional: it takes no {name!r}")
        return {name: kind.check(name, condition.get(name), batch, device) for name, kind in self.conditions.items()}
