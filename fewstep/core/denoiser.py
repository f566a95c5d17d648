"""A denoiser: `denoiser(x, t, **condition) -> Prediction`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.condition import Condition
from fewstep.core.errors import suggest
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process


class Denoiser(nn.Module):
    """Base of everything that predicts: networks, closed forms, and whatever wraps them.

    `forward(x, t, **condition)` takes `x` `(B, *shape)` and `t`, a scalar or `(B,)` tensor of process times.
    `shape` is one sample's shape, or None where any will do; `conditions` names what may be asked for;
    `value_range` is the range of the data, or None.
    """

    process: Process
    shape: tuple[int, ...] | None = None
    conditions: Mapping[str, Condition] = {}
    value_range: tuple[float, float] | None = None
    plan: Plan | None = None  # the plan that samples it best, where one was found
    # The rule of the model's own scheduler, where it came with one: (process, steps, end) -> times.
    timesteps: Callable[..., list[float]] | None = None
    solver: str | None = None  # the solver that suits it where none is asked for

    @property
    def carries(self) -> bool:
        """Whether it takes a run's memory (core/memory.py), as the condition `memory`."""
        return False

    @property
    def device(self) -> torch.device:
        """Where it computes: the device of its first tensor, or the CPU."""
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which it computes: that of its first parameter, or float32."""
        return next((p.dtype for p in self.parameters()), torch.float32)

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON: its process, shape, conditions and so on."""
        return {
            "denoiser": type(self).__name__,
            "parameters": sum(p.numel() for p in self.parameters()),
            "process": self.process.config(),
            "shape": list(self.shape) if self.shape is not None else None,
            "value range": list(self.value_range) if self.value_range else None,
            "conditions": {name: kind.config() for name, kind in self.conditions.items()},
        }

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        raise NotImplementedError

    def encode(self, data: Tensor, **condition: Any) -> Tensor:
        """Data `(B, ...)` in the coordinates `(B, *shape)` in which the process runs: the data themselves, for most."""
        return data

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        """The inverse of `encode`: what a run's samples are as data."""
        return x

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


class Wrapper(Denoiser):
    """Base of the denoisers around another one, `model`: all but what a technique changes is the model's own."""

    def __init__(self, model: Denoiser):
        super().__init__()
        self.model, self.process, self.shape = model, model.process, model.shape
        self.conditions, self.value_range = model.conditions, model.value_range
        self.plan, self.timesteps, self.solver = model.plan, model.timesteps, model.solver
        self.data: Any = getattr(model, "data", None)

    @property
    def carries(self) -> bool:
        return self.model.carries

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def describe(self) -> dict[str, Any]:
        return self.model.describe()

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        return self.model.check_condition(condition, batch, device)

    def encode(self, data: Tensor, **condition: Any) -> Tensor:
        return self.model.encode(data, **condition)

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        return self.model.decode(x, **condition)
