"""A sampler: whatever turns noise into samples of a model. Its final children are Plan, Loop and Started."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.core.check import Check
from fewstep.core.noise import Source
from fewstep.core.ops import Number
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.core.table import Table

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


@dataclass(frozen=True)
class Result:
    """Samples `(B, *shape)`, the evaluations planned and made, seconds, and the network's inputs where asked for.

    `report` holds what else is known of the run: `rows`, how many rows the innermost network saw for one sample (two
    per evaluation under guidance), and, for a `Loop` that skips or rejects, `nfe_per_sample` `(B,)`.
    """

    samples: Tensor
    planned_nfe: int
    nfe: int
    seconds: float
    trajectory: tuple[Tensor, ...] = ()
    report: dict[str, Any] = field(default_factory=dict)


class Sampler(ABC):
    """Base of what samples: `sampler(model, noise, label=3)` gives the samples, `sampler.run` a `Result`.

    `times` are those of its grid, decreasing; `start = (alpha, sigma)` scales the clean sample and the noise to the
    first of them (one float per band under a process with bands); `process` is the configuration of the process that
    it is for; `about` says how it was made.
    """

    times: tuple[float, ...]
    start: tuple[Number, Number]
    process: Mapping[str, Any]
    about: Mapping[str, Any]

    @property
    @abstractmethod
    def nfe(self) -> int:
        """Network evaluations of one run, at most."""

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether it draws noise beyond the initial one."""

    @abstractmethod
    def run(
        self,
        model: Model,
        noise: Tensor,
        *,
        seed: int = 0,
        first: int = 0,
        init: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        callback: Callback | None = None,
        progress: bool = False,
        trajectory: bool = False,
        source: Source | None = None,
        **condition: Any,
    ) -> Result:
        """Run and return a `Result`; the arguments are those of `fewstep.core.run.run`."""

    @property
    def name(self) -> str:
        return str(self.about.get("solver", "plan"))

    # What only a plan has. `fs.plan` returns other samplers as well, for solvers that depend on the data as they run.

    def _none(self, what: str) -> ValueError:
        return ValueError(f"{self.name!r} has no {what}; only a plan has")

    @property
    def table(self) -> Table:
        """A plan's table (`Plan.table`); `ValueError` for every other sampler."""
        raise self._none("table")

    def check(self) -> Check:
        """A plan's properties (`Plan.check`); `ValueError` for every other sampler."""
        raise self._none("order to check")

    def to_json(self) -> str:
        """A plan as text (`Plan.to_json`); `ValueError` for every other sampler."""
        raise self._none("file")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a plan (`Plan.save`); `ValueError` for every other sampler."""
        raise self._none("file")

    def as_diffusers_scheduler(self, like: Any = None) -> Any:
        """A plan as a diffusers scheduler (`Plan.as_diffusers_scheduler`); `ValueError` for every other sampler."""
        raise self._none("table")

    def fits(self, process: Process) -> bool:
        """Whether the sampler was made for this process (the same kind and parameters)."""
        if self.__dict__.get("_fitted") is not process:  # remembered: comparing a long table costs more than a step
            if process.config() != dict(self.process):
                return False
            self.__dict__["_fitted"] = process
        return True

    def __call__(self, model: Model, noise: Tensor, **options: Any) -> Tensor:
        """Run and return the samples `(B, *shape)`; the options are those of `run`."""
        return self.run(model, noise, **options).samples
