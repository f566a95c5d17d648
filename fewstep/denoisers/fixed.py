"""A model with a condition fixed, for metrics and searches that would otherwise draw conditions of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.memory import ask
from fewstep.core.methods import Method
from fewstep.core.prediction import Prediction

METHODS = (
    Method(
        "fixed",
        claim="a model under one condition, as an unconditional denoiser for metrics and searches",
        use="Fixed",
        facts={"wraps": True, "changes": ("conditions", "encode", "decode")},
    ),
)


class Fixed(Wrapper):
    """The model under `condition`, the same for every sample: `Fixed(model, text="a red circle")`.

    All of the model's conditions are fixed, those not named at their empty values, so it is an unconditional denoiser.

    Raises:
        ValueError: a condition that the model refuses.
    """

    def __init__(self, model: Denoiser, **condition: Any):
        super().__init__(model, conditions={})
        self.fixed = model.check_condition(condition, 1, model.device)

    def config(self) -> dict[str, Any]:
        return {"model": self.model} | self.fixed

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        return Denoiser.check_condition(self, condition, batch, device)  # it has none left

    def _rows(self, x: Tensor) -> dict[str, Tensor]:
        return {name: value.to(x.device).expand(len(x), *value.shape[1:]) for name, value in self.fixed.items()}

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        return ask(self.model, x, t, condition.get("memory"), self._rows(x))

    def encode(self, data: Tensor, **condition: Any) -> Tensor:
        return self.model.encode(data, **self._rows(data))

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        return self.model.decode(x, **self._rows(x))
