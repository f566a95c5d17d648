"""A denoiser: `denoiser(x, t, **condition) -> Prediction`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from fewstep.core.condition import Condition
from fewstep.core.errors import suggest
from fewstep.core.facts import Facts
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.core.student import NO_NEGATIVE, Student, check_unguided

_FACTS = tuple(field.name for field in fields(Facts))


class Denoiser(nn.Module):
    """Base of everything that predicts: networks, closed forms, and whatever wraps them.

    `forward(x, t, **condition)` takes `x` `(B, *shape)` and `t`, a scalar or `(B,)` tensor of process times.

    What else is known of it are plain attributes, each where it applies: set them in `__init__` or on the class.
    `facts` collects those that are set.
    """

    process: Process
    shape: tuple[int, ...] | None = None
    conditions: Mapping[str, Condition] = {}
    value_range: tuple[float, float] | None = None
    plan: Plan | None = None  # the plan that samples it best, where one was found
    # The rule of the model's own scheduler, where it came with one: (process, steps, end) -> times.
    timesteps: Callable[..., list[float]] | None = None
    solver: str | None = None  # the solver to use where none is named
    student: Student | None = None  # what a distilled model is
    calibration: Any = None  # how wrong its x0 is at each noise level, where that was measured

    @property
    def carries(self) -> bool:
        """Whether it accepts a run's memory (core/memory.py), as the condition `memory`."""
        return False

    @property
    def facts(self) -> Facts:
        """Its process, shape, conditions and so on, as they are now."""
        # A data set kept as the tensor `data` is not a data set's name, and other models have no such attribute at all.
        own = {name: getattr(self, name) for name in _FACTS if hasattr(self, name)}
        return Facts(**own | {"data": own.get("data") if isinstance(own.get("data"), str) else None})

    def take(self, facts: Facts) -> None:
        """Adopt these facts as its own."""
        # Bypasses nn.Module's bookkeeping, which would register another model's autoencoder here a second time.
        self.__dict__.update(vars(facts))

    @property
    def device(self) -> torch.device:
        """Where it computes: the device of its first tensor, or the CPU."""
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which it computes: that of its first parameter, or float32."""
        return next((p.dtype for p in self.parameters()), torch.float32)

    def describe(self) -> dict[str, Any]:
        """A description as JSON: its process, shape, conditions and so on."""
        distilled = {} if self.student is None else {"student": self.student.config()}
        return {
            "denoiser": type(self).__name__,
            "parameters": sum(p.numel() for p in self.parameters()),
            "process": self.process.config(),
            "shape": list(self.shape) if self.shape is not None else None,
            "value range": list(self.value_range) if self.value_range else None,
            "conditions": {name: kind.config() for name, kind in self.conditions.items()},
            **distilled,
        }

    def config(self) -> dict[str, Any]:
        """The options that rebuild it, by name: numbers, text, tensors and things that have configurations.

        Its weights and buffers are not among them: they are its state (`fewstep.core.config`). `ValueError` for a
        denoiser that does not say what it is made of, such as one around a function.
        """
        raise self.unsaved()

    def unsaved(self) -> ValueError:
        """The error for a denoiser that cannot be saved."""
        return ValueError(
            f"{type(self).__name__} cannot be saved: it is not made of fewstep's own networks and methods alone"
        )

    @classmethod
    def from_config(cls, options: dict[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The denoiser with these options, which are built already; `state` is what its buffers will be loaded from."""
        return cls(**options)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        raise NotImplementedError

    def encode(self, data: Tensor, **condition: Any) -> Tensor:
        """Data `(B, ...)` in the coordinates `(B, *shape)` in which the process runs: the data themselves, for most."""
        return data

    def decode(self, x: Tensor, **condition: Any) -> Tensor:
        """The inverse of `encode`: a run's samples as data."""
        return x

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        """The conditions as tensors; `ValueError` for a name this denoiser does not know.

        A condition that is left out is passed as its empty value.
        """
        for name, value in condition.items():
            if name not in self.conditions:
                if name == "negative":
                    check_unguided(self.student, NO_NEGATIVE)
                if self.conditions:
                    raise suggest("condition", name, self.conditions)
                if value is None:
                    continue
                raise ValueError(f"this model is unconditional: it takes no {name!r}")
        return {name: kind.check(name, condition.get(name), batch, device) for name, kind in self.conditions.items()}


class Wrapper(Denoiser):
    """Base of the denoisers that wrap another one, `model`: all but what a technique changes is the model's own.

    changes: facts that differ from the model's, such as `plan=None`.
    """

    autoencoder: nn.Module | None
    data: str | None
    data_std: float | None

    def __init__(self, model: Denoiser, **changes: Any):
        super().__init__()
        self.model = model
        self.take(replace(model.facts, **changes))

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
