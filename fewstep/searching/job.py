"""A search in progress: what is to be found, what it may cost, and the best plan so far, kept on disk where wanted."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.files import read_text
from fewstep.core.noise import VERSION
from fewstep.core.plan import Plan
from fewstep.data.dataset import Dataset
from fewstep.report.files import write_json
from fewstep.sampling.build import fixed_plan as make_plan
from fewstep.searching.candidates import score
from fewstep.searching.problem import Problem, run_all
from fewstep.searching.reference import SOLVER, TIMES, reference_plan, solve

FORMAT = "fewstep-search-1"


class OutOfBudget(Exception):
    """Raised inside a method when the budget is spent; the best plan so far stands."""


class Job:
    """What a search method works on.

    A method is a function `method(job, **options)`. It calls `job.offer(plan)` for each plan worth a try, which
    scores it on held-out noises (relative endpoint error, lower is better), and keeps the best; `job.save(state)`
    with a JSON state from which it could go on, and begins with `job.state`, None in a fresh search. `job.rate(plan)`
    scores on the training noises, to choose by. `offer`, `rate`, `save` and `check` raise `OutOfBudget` when the budget
    is spent: the method need not look at it. Randomness comes from
    `job.seed`, or from a generator whose state is part of the saved one, so that a search that was killed and taken
    up again ends as if it had not been.

    `train` are the noises to learn from, `held_out` those that plans are scored on; both carry the reference's ends.
    The cost is counted in `evaluations`, of the network on one sample, whoever makes them.
    """

    def __init__(
        self,
        model: Denoiser,
        nfe: int,
        *,
        method: str,
        seed: int = 0,
        noises: int = 64,
        reference_nfe: int = 100,
        seconds: float | None = None,
        evaluations: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        settings: dict[str, Any] | None = None,
        tell: Callable[[str], None] | None = None,
        data: Dataset | None = None,
    ):
        self.model, self.process, self.nfe, self.method, self.seed = model, model.process, nfe, method, seed
        self.noises, self.reference_nfe, self.tell, self.data = noises, reference_nfe, tell, data
        self._limit_seconds, self._limit_evaluations = seconds, evaluations
        self.dtype = _dtype(model)
        self.settings = {
            "method": method,
            "nfe": nfe,
            "seed": seed,
            "noise_version": VERSION,
            "noises": noises,
            "reference_nfe": reference_nfe,
            "process": self.process.config(),
            "options": json.loads(json.dumps(settings or {})),  # as the file gives them back: lists for tuples
        }
        if data is not None:
            self.settings["data"] = data.spec.name
        self.best: Plan | None = None
        self.score = float("inf")
        self.measure = "relative end point error"  # what `score` is
        self.state: Any = None
        self.history: list[tuple[int, float]] = []  # (evaluations, score) whenever the best improved
        self.result: Any = None  # what a method returns besides a plan: a policy, ratios
        self._before = (0, 0.0)  # evaluations and seconds of the runs before this one
        self._begin, self._count = time.perf_counter(), 0
        self.file = Path(folder) / "search.json" if folder is not None else None
        if self.file is not None and self.file.exists():
            self._resume()

    # The count of evaluations holds for everything inside `with job:`.
    def __enter__(self) -> Job:
        def count(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            self._count += len(inputs[0])

        self._handle = self.model.register_forward_hook(count)
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    @property
    def evaluations(self) -> int:
        """Evaluations of the network on one sample, so far."""
        return self._before[0] + self._count

    @property
    def seconds(self) -> float:
        return self._before[1] + time.perf_counter() - self._begin

    @cached_property
    def train(self) -> Problem:
        """Noises to learn from, with the reference's ends."""
        return solve(self.model, self.seed, 0, self.noises, self.reference_nfe, self.dtype, self.data)

    @cached_property
    def held_out(self) -> Problem:
        """Noises that plans are scored on; none is in `train`."""
        return solve(self.model, self.seed, self.noises, self.noises, self.reference_nfe, self.dtype, self.data)

    @property
    def teacher(self) -> Plan:
        """The reference's plan."""
        return reference_plan(self.model, self.reference_nfe)

    def trajectory(self, times: Sequence[float], noises: int | None = None) -> list[Tensor]:
        """The exact states of training noises at decreasing times, each `(n, *shape)`: the teacher's solution there.

        The teacher runs on its own times with these among them, so its states are of its full order.
        """
        return self.paths(times, noises)[0]

    def paths(self, times: Sequence[float], noises: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """The states of `trajectory`, and what the teacher answers at each of them, as x0.

        There is one answer for every time, or for all but the last where that is the clean sample's; the state there is
        the reference's.
        """
        n = self.noises if noises is None else min(noises, self.noises)
        first, last = self.process.t_max, times[-1]
        own = make_plan(self.process, timesteps=TIMES, nfe=self.reference_nfe).times
        gap = 1e-9 * (self.process.t_max - self.process.t_min)
        between = [t for t in own if last < t < first and all(abs(t - s) > gap for s in times)]
        grid = sorted({first, *times, *between}, reverse=True)
        if grid[-1] == self.process.t_zero and grid[-2] > self.process.t_min:
            grid.insert(-1, self.process.t_min)
        ends = grid[-1] == self.process.t_zero
        if not ends and len(grid) > 1:  # so that the last state is evaluated, too
            grid.append(self.process.t_zero)
        plan = make_plan(self.process, SOLVER, timesteps=grid)
        asked = times[:-1] if ends else times
        wanted = {t: i for i, t in enumerate(asked)}
        states: list[list[Tensor]] = [[] for _ in times]
        answers: list[list[Tensor]] = [[] for _ in asked]
        for begin in range(0, n, 256):
            part = self.train.part(begin, min(begin + 256, n))
            seen: dict[int, tuple[Tensor, Tensor]] = {}

            def watch(count: int, t: float, x: Tensor, prediction: Any, seen: dict[int, Any] = seen) -> None:
                if t in wanted:  # a corrected start is evaluated twice: the later is the better
                    seen[wanted[t]] = (x.clone(), prediction.x0.clone())

            plan(self.model, part.noise, dtype=part.noise.dtype, callback=watch, **part.condition)
            for i in range(len(asked)):
                states[i].append(seen[i][0])
                answers[i].append(seen[i][1])
            if ends:
                states[-1].append(part.reference)
        return [torch.cat(kept) for kept in states], [torch.cat(kept) for kept in answers]

    def run(self, plan: Plan, problem: Problem) -> Tensor:
        """The plan's samples for a problem's noises."""
        return run_all(plan, self.model, problem.noise, problem.condition, problem.seed, problem.first)

    def rate(self, plan: Plan) -> float:
        """A plan's score on the training noises, for a method to choose by; nothing is kept."""
        self.check()
        return score(plan, self.model, self.train)

    def offer(self, plan: Plan, value: float | None = None) -> float:
        """Score a plan on the held-out noises and keep it if it is the best so far; its score.

        A method that goes by another measure gives the plan's `value` on those noises instead, for all its plans, and
        names it in `job.measure`.
        """
        self.check()
        if value is None:
            value = score(plan, self.model, self.held_out)
        if value < self.score:
            self.best, self.score = plan, value
            self.history.append((self.evaluations, value))
            self._write()
            if self.tell is not None:
                self.tell(f"{value:.4g}: {plan.name} on {plan.about.get('timesteps')}, {self.evaluations} evaluations")
        return value

    def save(self, state: Any) -> None:
        """Keep a JSON state to go on from."""
        self.state = state
        self._write()
        self.check()

    def check(self) -> None:
        """Raise `OutOfBudget` when the budget is spent."""
        if (self._limit_seconds is not None and self.seconds >= self._limit_seconds) or (
            self._limit_evaluations is not None and self.evaluations >= self._limit_evaluations
        ):
            raise OutOfBudget

    def _write(self) -> None:
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if self.best is not None:
            self.best.save(self.file.parent / "plan.json")
        write_json(
            self.file,
            {
                "format": FORMAT,
                "settings": self.settings,
                "plan": None if self.best is None else self.best.to_json(),
                "score": None if self.best is None else self.score,
                "history": [list(pair) for pair in self.history],
                "evaluations": self.evaluations,
                "seconds": self.seconds,
                "state": self.state,
            },
        )

    def _resume(self) -> None:
        assert self.file is not None
        try:
            data = json.loads(read_text(self.file))
        except ValueError:
            data = None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"{self.file} is no search of this version: choose another folder")
        for key, value in self.settings.items():
            if data["settings"].get(key) != value:
                raise ValueError(
                    f"{self.file} holds a search with {key} {data['settings'].get(key)!r}, not {value!r}:"
                    " take the same settings to go on with it, or another folder"
                )
        if data["plan"] is not None:
            self.best, self.score = Plan.from_json(data["plan"]), float(data["score"])
        self.history = [(int(n), float(value)) for n, value in data["history"]]
        self._before, self.state = (int(data["evaluations"]), float(data["seconds"])), data["state"]


def _dtype(model: Denoiser) -> torch.dtype:
    """float64 for closed forms that compute in it, float32 for networks."""
    tensors = [*model.parameters(), *model.buffers()]
    return torch.float64 if tensors and all(t.dtype == torch.float64 for t in tensors) else torch.float32
