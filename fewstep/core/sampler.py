"""A sampler: whatever turns noise into samples of a model. Its final children are Plan, Loop and Started."""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.core.arguments import shown
from fewstep.core.check import Check
from fewstep.core.memory import Memory
from fewstep.core.model import Callback, Model
from fewstep.core.noise import Noise, Source
from fewstep.core.ops import Number, Spread
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.core.progress import bar
from fewstep.core.table import Table, Weight


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


@dataclass
class Run:
    """A run on its way, as a sampler executes it.

    `state` is the state at the first time, given away once by `begin`; `watch` is called after each evaluation, if it
    is not None; `report` is the sampler's to fill. `noise`, `seed` and `first` are what the run was started with.
    """

    model: Model
    condition: dict[str, Tensor]
    source: Source
    state: Tensor | None
    memory: Memory | None
    watch: Callback | None
    noise: Tensor
    seed: int
    first: int
    init: bool
    report: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> Tensor:
        """The state, which the run forgets: whoever executes it has the only one."""
        state, self.state = self.state, None
        assert state is not None
        return state


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

    @property
    @abstractmethod
    def moments(self) -> tuple[float, ...]:
        """The times of its evaluations, where it knows them beforehand; otherwise none."""

    @abstractmethod
    def execute(self, run: Run) -> tuple[Tensor, int]:
        """The samples of a run, and the evaluations made."""

    @abstractmethod
    def blame(self, again: Callable[[Callback], Run]) -> ValueError:
        """What is wrong with samples that are not finite; `again(watch)` starts the same run once more."""

    @torch.no_grad()
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
        """Run and return a `Result`.

        Args:
            noise: initial noise `(B, *shape)`, standard normal; scaled to the first time.
            seed, first: the stream of per-step noise, that of samples `first ... first + B - 1` under `seed`.
            init: a clean batch to start from, for samplers that start in the middle (`strength` below 1).
            dtype: of the state; the network sees it and answers in its own dtype.
            callback: `callback(evaluation, t, x, prediction)` after each evaluation; its tensors are views that the
                next step overwrites: clone what you keep.
            trajectory: also return the network's inputs and the result, one more tensor than evaluations.
            source: where the steps' noise comes from, by default `Noise(seed, first)`.
            **condition: what the denoiser is conditioned on.

        Raises:
            ValueError: noise of a wrong shape or dtype, an unknown condition, a network that returns another shape, or
                one whose answers are not finite (checked once, on the result, then traced to its evaluation and time).
        """
        begin, drawn = time.perf_counter(), source or Noise(seed, first)

        def start(watch: Callback | None) -> Run:
            x, named = begin_run(self, model, noise, init, dtype, condition)
            memory = memory_for(model, len(x), condition, self)
            return Run(model, named, drawn, x, memory, watch, noise, seed, first, init is not None)

        run = start(None)
        memory, report, rows = run.memory, run.report, len(noise)
        with bar(self.name if progress else None, self.nfe if progress else 0) as advance:
            watch = Watch(callback, trajectory, advance)
            run.watch = watch if watch.wanted else None
            samples, count = self.execute(run)
        if not is_finite(samples):
            raise self.blame(start)
        seen = count if memory is None else memory.seen / rows if rows else 0
        told = {"rows": int(seen) if seen == int(seen) else seen} | (memory.report if memory is not None else {})
        return Result(samples, self.nfe, count, time.perf_counter() - begin, watch.end(samples), told | report)

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


def check_run(sampler: Sampler, model: Model, noise: Tensor, dtype: torch.dtype) -> None:
    """`ValueError` for noise, a dtype or a model that the sampler does not fit."""
    if not hasattr(model, "check_condition"):
        raise ValueError(f"model must be a denoiser, as fs.load gives, got {shown(model)}")
    if not isinstance(noise, Tensor) or not noise.is_floating_point():
        got = noise.dtype if isinstance(noise, Tensor) else type(noise).__name__
        raise ValueError(f"noise must be a float tensor (B, *shape), got {got}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the sampling state is float32 or float64, got {dtype} (the network may use any dtype)")
    if noise.ndim < 2:
        raise ValueError(f"noise must have a batch dimension, (B, *shape), got shape {tuple(noise.shape)}")
    if model.shape is not None and tuple(noise.shape[1:]) != tuple(model.shape):
        raise ValueError(
            f"noise of shape {tuple(noise.shape)} does not fit the model: it takes (B, {_comma(model.shape)})"
        )
    own = getattr(model, "process", None)
    if own is not None and not sampler.fits(own):
        raise ValueError(
            f"the plan was made for the process {sampler.process.get('process')!r}, the model has"
            f" {own.config()['process']!r} or other parameters of it: make the plan with fs.plan(model.process, ...)"
        )


def _comma(shape: Sequence[int]) -> str:
    return ", ".join(str(n) for n in shape)


def _factor(number: Number, spread: Spread | None, like: Tensor) -> Weight:
    if not isinstance(number, tuple):
        return number
    assert spread is not None
    return spread.elements([number])[0].to(like)


def begin_run(
    sampler: Sampler,
    model: Model,
    noise: Tensor,
    init: Tensor | None,
    dtype: torch.dtype,
    condition: Mapping[str, Any],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The start of a run, checked: the state at the sampler's first time, and the conditions as tensors."""
    check_run(sampler, model, noise, dtype)
    spread = sampler.table.spread if isinstance(sampler.start[1], tuple) else None
    if spread is not None and tuple(noise.shape[1:]) != spread.shape:
        raise ValueError(f"the plan is for samples of shape {spread.shape}, got noise of shape {tuple(noise.shape)}")
    named = model.check_condition(condition, noise.shape[0], noise.device)
    x = noise.to(dtype)
    x = x * _factor(sampler.start[1], spread, x)
    if init is not None:
        if not isinstance(init, Tensor):
            raise ValueError(f"init must be a tensor (B, *shape), got {shown(init)}")
        if init.shape != noise.shape:
            raise ValueError(f"init has shape {tuple(init.shape)}, the noise {tuple(noise.shape)}")
        x += init.to(dtype) * _factor(sampler.start[0], spread, x)
    return x, named


def memory_for(model: Model, rows: int, condition: Mapping[str, Any], sampler: Sampler) -> Memory | None:
    """A run's memory, for a model that carries one."""
    if not model.carries:
        return None
    told = {name: float(v) if isinstance(v, int | float) else None for name, v in condition.items() if v is not None}
    return Memory(rows, sampler.moments, sampler.times[-1], told, solver_of(sampler))


def solver_of(sampler: Sampler) -> str:
    """A sampler's name as a run's memory has it."""
    return f"{sampler.name} with noise" if sampler.stochastic else sampler.name


class Watch:
    """What else is done with each evaluation: the trajectory, a callback, a progress bar."""

    def __init__(self, callback: Callback | None, trajectory: bool, advance: Callable[[], None] | None):
        self.callback, self.trajectory, self.advance = callback, trajectory, advance
        self.wanted = trajectory or callback is not None or advance is not None
        self.states: list[Tensor] = []

    def __call__(self, number: int, t: float, x: Tensor, prediction: Prediction) -> None:
        if self.trajectory:
            self.states.append(x.clone())
        if self.callback is not None:
            self.callback(number, t, x, prediction)
        if self.advance is not None:
            self.advance()

    def end(self, samples: Tensor) -> tuple[Tensor, ...]:
        return (*self.states, samples) if self.trajectory else ()


def is_finite(samples: Tensor) -> bool:
    """Whether all elements are finite. A sum is the cheapest value that any NaN or infinity reaches; the elements
    are inspected only if it is not finite."""
    return math.isfinite(float(samples.sum())) or bool(torch.isfinite(samples).all())
