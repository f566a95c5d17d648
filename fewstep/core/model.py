"""What samplers need of a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.core.prediction import Prediction
from fewstep.core.process import Process

Callback = Callable[[int, float, Tensor, Prediction], None]


class Model(Protocol):
    """What a sampler needs of a denoiser."""

    process: Process
    shape: tuple[int, ...] | None

    @property
    def conditions(self) -> Mapping[str, Any]: ...

    @property
    def carries(self) -> bool: ...

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]: ...

    def __call__(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction: ...
