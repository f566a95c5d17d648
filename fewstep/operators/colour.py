"""Grey from colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.core.methods import Method
from fewstep.operators.operator import LinearOperator
from fewstep.operators.spectrum import on_axis

METHODS = (Method("grey", claim="one channel from several: what restores it gives colours to grey", use="Grey"),)

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Grey(LinearOperator):
    """`y` `(1, *size)`, the weighted sum of a sample's channels `(C, *size)`.

    weights: one for each channel; by default those of luma (ITU-R BT.601) for three channels, else the mean's.
    """

    weights: Tensor

    def __init__(self, weights: Sequence[float] | Tensor | None = None):
        super().__init__()
        values = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        if values is not None and (values.ndim != 1 or not bool(torch.isfinite(values).all()) or not values.any()):
            raise ValueError(f"grey takes one finite weight for each channel, not all of them 0, got {values.tolist()}")
        self.given = None if values is None else values.tolist()
        self.register_buffer("weights", values, persistent=False)

    def config(self) -> dict[str, Any]:
        return {"weights": self.given}

    def prepare(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) < 2:
            raise ValueError(f"grey is made of the channels of samples (C, *size), not of {shape}")
        if self.given is None:
            luma = LUMA if shape[0] == len(LUMA) else [1 / shape[0]] * shape[0]
            self.weights = torch.tensor(luma, dtype=torch.float64)
        if len(self.weights) != shape[0]:
            raise ValueError(f"there are {len(self.weights)} weights for samples of {shape[0]} channels, {shape}")
        return (1, *shape[1:])

    def act(self, x: Tensor) -> Tensor:
        return on_axis(x, self.weights[None], 0)

    def transpose(self, y: Tensor) -> Tensor:
        return on_axis(y, self.weights[:, None], 0)

    def along(self) -> tuple[Tensor | None, ...]:
        return (self.weights[None], *[None] * (len(self.out) - 1))
