"""The trace's twin on tensors, for samplers whose arithmetic depends on the data as it runs.

A solver written for the trace, `solver(trace, process, times, **options)`, runs on `Live` as well: `start, evaluate,
keep, noise` give tensors instead of symbols. One that inspects them (adaptive steps, Langevin correctors, skipping)
can run only this way: it is a `Loop`, a sampler without operations or a table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.core.memory import Memory, ask
from fewstep.core.model import Callback, Model
from fewstep.core.noise import Noise, Source, stream
from fewstep.core.ops import Number, in_band
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process, process_from_config
from fewstep.core.program import Ask, drive, program
from fewstep.core.run import check_given
from fewstep.core.sampler import Run, Sampler


class Live:
    """What a sampler sees of its run: the model's answers, counted, and the samples' own noise.

    `nfe` counts the calls, `made` `(B,)` the evaluations of each sample (a call may be for some only); `report` is
    for the sampler to fill: it becomes `Result.report`. `counting` says that the run only counts evaluations, on a
    state of shape `(1, 2)` whatever the samples' shape is.
    """

    def __init__(
        self,
        model: Model,
        process: Process,
        x: Tensor,
        source: Source,
        condition: Mapping[str, Tensor],
        callback: Callback | None = None,
        counting: bool = False,
        memory: Memory | None = None,
    ):
        self.counting, self.memory = counting, memory
        self.model, self.process, self.source, self.condition = model, process, source, dict(condition)
        self._start, self._callback = x, callback
        self._drawn = stream(source, itertools.count(1), tuple(x.shape), x.device, x.dtype)
        self.nfe = 0
        self.made = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self.report: dict[str, Any] = {}

    def start(self) -> Tensor:
        """The state `(B, *shape)` at the first time of the grid."""
        return self._start

    def evaluate(self, x: Tensor, t: float | Tensor, rows: Tensor | None = None, **given: float) -> Prediction:
        """The model's answer at x and time t, a number or `(B,)`; `given` are numbers for the network.

        With `rows` `(R,)`, indices of samples, x `(R, *shape)` and t are those samples' alone.
        """
        time_ = t.to(x.dtype) if isinstance(t, Tensor) else torch.tensor(t, dtype=x.dtype, device=x.device)
        condition = self.condition
        if rows is None:
            self.made += 1
        else:
            self.made[rows] += 1
            condition = {name: value[rows] for name, value in condition.items()}
        for name, number in given.items():
            condition = {**condition, name: torch.full((len(x),), number, dtype=x.dtype, device=x.device)}
        if self.memory is None:
            prediction = self.model(x, time_, **condition)
        else:
            self.memory.advance(None if isinstance(t, Tensor) else float(t), given.items())
            prediction = ask(self.model, x, time_, self.memory if rows is None else self.memory[rows], condition)
        self.nfe += 1
        if prediction.value.shape != x.shape:
            raise ValueError(
                f"the network returned shape {tuple(prediction.value.shape)} for an input of shape {tuple(x.shape)}"
                f" at evaluation {self.nfe}"
            )
        if self._callback is not None:
            self._callback(self.nfe, t, x, prediction)  # type: ignore[arg-type]  # a tensor where times differ
        return prediction

    def keep(self, x: Tensor) -> Tensor:
        return x

    def noise(self, a: float | None = None, b: float | None = None) -> Tensor:
        """Fresh standard normal noise `(B, *shape)` from the samples' own stream."""
        return next(self._drawn).clone()


class _Zero:
    """Predicts zeros, to count evaluations."""

    shape: tuple[int, ...] | None = None
    conditions: Mapping[str, Any] = {}
    carries = False

    def __init__(self, process: Process):
        self.process = process

    def check_condition(self, condition: Mapping[str, Any], batch: int, device: torch.device) -> dict[str, Tensor]:
        return {}

    def __call__(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        return Prediction(torch.zeros_like(x), "x0", x, t, self.process)


@dataclass(frozen=True)
class Loop(Sampler):
    """A sampler whose arithmetic depends on the data.

    `solver(live, process, times, **options)` returns the samples. `most` is how many evaluations it makes at most; by
    default it is counted on a model that predicts zeros.
    """

    solver: Callable[..., Tensor]
    times: tuple[float, ...]
    start: tuple[Number, Number]
    process: Mapping[str, Any]
    about: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    most: int | None = None
    noisy: bool = False

    @cached_property
    def nfe(self) -> int:
        """Network evaluations of one run, at most."""
        if self.most is not None:
            return self.most
        process = process_from_config(dict(self.process))
        x = torch.full((1, 2), in_band(self.start[1], 0), dtype=torch.float64)
        live = Live(_Zero(process), process, x, Noise(0), {}, counting=True)
        with torch.no_grad():
            self.solver(live, process, list(self.times), **self.options)
        return live.nfe

    @property
    def stochastic(self) -> bool:
        return self.noisy

    def __str__(self) -> str:
        about = ", ".join(f"{key} {value}" for key, value in self.about.items() if not isinstance(value, dict))
        return f"Loop: at most {self.nfe} evaluations, {self.process.get('process')} process, {about}"

    @property
    def moments(self) -> tuple[float, ...]:
        return ()

    def execute(self, run: Run) -> tuple[Tensor, int]:
        """As every sampler; `Result.nfe` counts the calls, `Result.report` holds `nfe_per_sample` `(B,)`."""
        process = getattr(run.model, "process", None) or process_from_config(dict(self.process))
        live = Live(run.model, process, run.begin(), run.source, run.condition, run.watch, memory=run.memory)
        samples = self.solver(live, process, list(self.times), **self.options)
        if run.memory is None:
            run.report["rows"] = live.made.double().mean().item()
        run.report |= {"nfe_per_sample": live.made} | live.report
        return samples, live.nfe

    def blame(self, again: Callable[[Callback], Run]) -> ValueError:
        return ValueError(f"the samples of {self.name!r} are not finite")


Answer = Callable[[Live, int, Tensor], tuple[Tensor, str]]


def around(plan: Sampler, name: str, solver: Callable[[Live, Callable[[Answer], Tensor]], Tensor]) -> Loop:
    """A loop that runs a plan's arithmetic and supplies the network's answers itself.

    `solver(live, play)` calls `play(answer)`, which returns the samples; `answer(live, i, x)` returns the value and
    the kind at evaluation i, usually from `live.evaluate`. `ValueError` unless the plan has a table, and for one that
    draws a latent for the network.
    """
    table = plan.table
    if any(op.latent is not None for op in table.evaluations):
        raise ValueError(f"{plan.name!r} draws a latent for the network, which {name!r} does not pass on")

    def run(live: Live, process: Process, times: list[float]) -> Tensor:
        check_given(table, live.model)

        def play(answer: Answer) -> Tensor:
            count = -1

            def next_answer(asked: Ask) -> tuple[Tensor, str]:
                nonlocal count
                count += 1
                return answer(live, count, asked[0])

            return drive(program(table, live.start(), live.source), next_answer)

        return solver(live, play)

    about = dict(plan.about) | {"solver": f"{plan.name}, {name}"}
    return Loop(run, plan.times, plan.start, plan.process, about, most=plan.nfe, noisy=plan.stochastic)
