"""A class label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.core.arguments import check_whole
from fewstep.core.methods import Method

METHODS = (Method("label", claim="one of a number of classes, or none", use="Label"),)


@dataclass(frozen=True)
class Label:
    """A class label in [0, classes); None means "no label", which in tensors is the index `classes`."""

    guides: ClassVar[bool] = True
    classes: int

    def __post_init__(self) -> None:
        check_whole("classes", self.classes)

    def config(self) -> dict[str, Any]:
        return {"kind": "label", "classes": self.classes}

    def check(self, name: str, value: Any, batch: int, device: torch.device) -> Tensor:
        """The condition as a `(batch,)` long tensor; `ValueError` when out of range or of the wrong length."""
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
