"""The trace's twin on tensors, for samplers whose arithmetic depends on the data as it runs.

A solver written for the trace, `solver(trace, process, times, **options)`, runs on `Live` as well: `start, evaluate,
keep, noise` give tensors instead of symbols. One that looks at them (adaptive steps, Langevin correctors, skipping)
can run only so: it is a `Loop`, which has a plan's signature and no table.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise, Source
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process, process_from_config
from fewstep.core.run import Callback, Result, _bar, begin_run


class Live:
    """What a sampler sees of its run: the model's answers, counted, and the samples' own noise.

    `nfe` counts the calls, `made` `(B,)` the evaluations of each sample (a call may be for some of them); `report` is
    the sampler's to fill: it becomes `Result.report`. `counting` says that the run only counts evaluations, on a state
    of shape `(1, 2)` whatever the samples' shape is.
    """

    def __init__(
        self,
        model: Denoiser,
        process: Process,
        x: Tensor,
        source: Source,
        condition: Mapping[str, Tensor],
        callback: Callback | None = None,
        counting: bool = False,
    ):
        self.counting = counting
        self.model, self.process, self.source, self.condition = model, process, source, dict(condition)
        self._start, self._callback, self._draws = x, callback, 0
        self.nfe = 0
        self.made = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self.report: dict[str, Any] = {}

    def start(self) -> Tensor:
        """The state `(B, *shape)` at the first time of the grid."""
        return self._start

    def evaluate(self, x: Tensor, t: float | Tensor, rows: Tensor | None = None) -> Prediction:
        """The model's answer at x and time t, a number or `(B,)`.

        With `rows` `(R,)`, indices of samples, x `(R, *shape)` and t are those samples' alone.
        """
        time_ = t.to(x.dtype) if isinstance(t, Tensor) else torch.tensor(t, dtype=x.dtype, device=x.device)
        condition = self.condition
        if rows is None:
            self.made += 1
        else:
            self.made[rows] += 1
            condition = {name: value[rows] for name, value in condition.items()}
        prediction = self.model(x, time_, **condition)
        self.nfe += 1
        if prediction.value.shape != x.shape:
            raise ValueError(
                f"the network returned shape {tuple(prediction.value.shape)} for an input of shape {tuple(x.shape)}"
                f" at evaluation {self.nfe}"
            )
        if self._callback is not None:
            self._callback(self.nfe, t, x, prediction)  # type: ignore[arg-type]
        return prediction

    def keep(self, x: Tensor) -> Tensor:
        return x

    def noise(self, a: float | None = None, b: float | None = None) -> Tensor:
        """Fresh standard normal noise `(B, *shape)` of the samples' own stream."""
        self._draws += 1
        x = self._start
        return self.source.normal(self._draws, tuple(x.shape), x.device, x.dtype)


class _Zero(Denoiser):
    """Predicts zeros, to count evaluations."""

    def __init__(self, process: Process):
        super().__init__()
        self.process = process

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        return Prediction(torch.zeros_like(x), "x0", x, t, self.process)


@dataclass(frozen=True)
class Loop(Plan):
    """A sampler whose arithmetic depends on the data: a plan's signature, but no operations and no table.

    `solver(live, process, times, **options)` returns the samples. `most` is how many evaluations it makes at most; by
    default it is counted on a model that predicts zeros.
    """

    solver: Callable[..., Tensor] = field(kw_only=True)
    options: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    most: int | None = field(default=None, kw_only=True)
    noisy: bool = field(default=False, kw_only=True)

    @cached_property
    def nfe(self) -> int:  # type: ignore[override]
        """Network evaluations of one run, at most."""
        if self.most is not None:
            return self.most
        process = process_from_config(dict(self.process))
        x = torch.full((1, 2), float(self.start[1]), dtype=torch.float64)
        live = Live(_Zero(process), process, x, Noise(0), {}, counting=True)
        with torch.no_grad():
            self.solver(live, process, list(self.times), **self.options)
        return live.nfe

    @property
    def stochastic(self) -> bool:
        return self.noisy

    def _none(self, what: str) -> NoReturn:
        raise ValueError(f"{self.name!r} depends on the data as it runs, so it has no {what}; only a fixed plan has")

    @cached_property
    def table(self) -> Any:  # type: ignore[override]
        self._none("table")

    def _operations(self) -> Any:
        self._none("operations")

    def to_json(self) -> str:
        self._none("file")

    def __str__(self) -> str:
        about = ", ".join(f"{key} {value}" for key, value in self.about.items() if not isinstance(value, dict))
        return f"Loop: at most {self.nfe} evaluations, {self.process.get('process')} process, {about}"

    @torch.no_grad()
    def run(
        self,
        model: Denoiser,
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
        """As `fewstep.core.run.run`; `Result.nfe` counts the calls, `Result.report` holds `nfe_per_sample` `(B,)`."""
        begin = time.perf_counter()
        x, named = begin_run(self, model, noise, init, dtype, condition)
        kept: list[Tensor] = []
        with _bar(progress, self) as advance:

            def watch(count: int, t: float, state: Tensor, prediction: Prediction) -> None:
                if trajectory:
                    kept.append(state.clone())
                if callback is not None:
                    callback(count, t, state, prediction)
                if advance is not None:
                    advance()

            process = getattr(model, "process", None) or process_from_config(dict(self.process))
            live = Live(model, process, x, source or Noise(seed, first), named, watch)
            samples = self.solver(live, process, list(self.times), **self.options)
        if not math.isfinite(float(samples.sum())) and not bool(torch.isfinite(samples).all()):
            raise ValueError(f"the samples of {self.name!r} are not finite")
        if trajectory:
            kept.append(samples)
        report = {"nfe_per_sample": live.made} | live.report
        return Result(samples, self.nfe, live.nfe, time.perf_counter() - begin, tuple(kept), report)
