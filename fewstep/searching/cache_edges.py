"""Edges of a plan's run: what leaving a part out between two whole evaluations costs, and does to the samples.

An edge i -> j runs the model whole at i and j, and at the evaluations between them a part stands, forecast through
whole evaluations that lie as far apart as the edge is long. Its deviation alone is measured at the end of the run,
which goes on from the state that it had at i.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.caching.budget import WHOLE, parts_of
from fewstep.caching.common import Cached
from fewstep.caching.forecast import level, weighted, weights
from fewstep.caching.recipe import OUTPUT, Recipe
from fewstep.core.denoiser import Denoiser
from fewstep.core.files import read_text
from fewstep.core.memory import Memory, ask
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.program import program
from fewstep.core.run import check_given
from fewstep.core.sampler import begin_run, memory_for
from fewstep.report.files import write_json

GAP = 4  # whole evaluations lie at most so far apart
ORDERS = 3  # of forecasts, at most
FORMAT = 1


@dataclass(frozen=True)
class Edge:
    """Whole at `i` and `j` (`j` is the number of evaluations at the end), `part` standing between them."""

    i: int
    j: int
    part: str

    @property
    def key(self) -> str:
        return f"{self.i} {self.j} {self.part}"


@dataclass(frozen=True)
class Measured:
    """An edge's relative deviation at the end of the run, alone, and the order of its forecasts."""

    error: float
    order: int


def deviation(x: Tensor, reference: Tensor) -> float:
    """Of samples from others, all together, relative to the norm of those."""
    return float((x.double() - reference.double()).norm() / reference.double().norm())


class Trial:
    """A plan's run on calibration noises, whose answers and kept parts are all at hand, to be gone on from anywhere."""

    def __init__(self, model: Denoiser, plan: Plan, noise: Tensor, condition: dict[str, Any], seed: int, first: int):
        self.parts = parts_of(model)
        self.standing: dict[int, str] = {}
        self.order = ORDERS
        recipe = Recipe(
            parts=self.parts,
            schedule=lambda number, count: (self.standing[number],) if number in self.standing else (),
            order=plan.nfe,
            orders=lambda number, name: self.order,
            rows=(),
        )
        self.cached = Cached(model, recipe, ("budget", {}))
        self.plan, self.noise, self.condition, self.seed, self.first = plan, noise, condition, seed, first
        self.answers: list[tuple[Tensor, str]] = []
        self.levels = [level(model.process, t) for t in plan.moments]
        self.memory, self.reference = self._whole()
        # What else the model remembers is that of the end, so a run that it matters to cannot go on from the middle.
        self.anywhere = not any(" @" not in name for memory in _branches(self.memory) for name in memory.kept)

    def _begin(self) -> tuple[Any, dict[str, Tensor], Memory]:
        x, named = begin_run(self.plan, self.cached, self.noise, None, self.noise.dtype, self.condition)
        check_given(self.plan.table, self.cached)
        memory = memory_for(self.cached, len(x), self.condition, self.plan)
        assert memory is not None
        return program(self.plan.table, x, Noise(self.seed, self.first)), named, memory

    @torch.no_grad()
    def _whole(self) -> tuple[Memory, Tensor]:
        steps, named, memory = self._begin()
        return memory, self._go_on(steps, next(steps), named, memory, keep=True)

    def _go_on(self, steps: Any, asked: Any, named: dict[str, Tensor], memory: Memory, keep: bool = False) -> Tensor:
        evaluations = self.plan.evaluations
        try:
            while True:
                x, t, given = asked
                memory.advance(given=evaluations[memory.number + 1].given)
                answer = ask(self.cached, x, t, memory, {**named, **given})
                if keep:
                    self.answers.append((answer.value, answer.kind))
                asked = steps.send((answer.value, answer.kind))
        except StopIteration as stop:
            found: Tensor = stop.value
            return found

    def nodes(self, edge: Edge) -> list[int]:
        """The whole evaluations that an edge's forecasts go through, the last first: as far apart as it is long."""
        gap = min(edge.j - edge.i, GAP)
        return [edge.i - k * gap for k in range(ORDERS) if edge.i - k * gap >= 0]

    @torch.no_grad()
    def best_order(self, edge: Edge) -> int:
        """The order whose forecasts come nearest to what the part said in the whole run; nothing is evaluated.

        0 where there is none: of two evaluations at one time only the later is kept.
        """
        keys, nodes, errors = self.parts[edge.part].keys, self.nodes(edge), [0.0] * ORDERS
        for memory in _branches(self.memory):
            for key in keys:
                if f"{key} @{edge.i}" not in memory.kept:
                    continue
                for number in range(edge.i + 1, min(edge.j, self.plan.nfe)):
                    exact = memory.kept.get(f"{key} @{number}")
                    for k in range(len(nodes)):
                        values = [memory.kept.get(f"{key} @{n}") for n in nodes[: k + 1]]
                        if exact is None or any(value is None for value in values):
                            errors[k] = math.inf
                            continue
                        by = weights([(n, self.levels[n]) for n in nodes[: k + 1]], self.levels[number])
                        errors[k] += float((weighted(values, by) - exact).square().sum())  # type: ignore[arg-type]
        tried = errors[: len(nodes)]
        return 1 + tried.index(min(tried)) if min(tried) < math.inf else 0

    @torch.no_grad()
    def error(self, edge: Edge, order: int) -> float:
        """An edge's deviation at the end of the run, alone; infinite where the samples are not finite."""
        if order == 0:
            return math.inf
        self.order, nodes = order, sorted(self.nodes(edge)[:order])
        inside = range(edge.i + 1, min(edge.j, self.plan.nfe))
        steps, named, memory = self._begin()
        asked = next(steps)
        if self.anywhere:
            for number in range(edge.i + 1):
                asked = steps.send(self.answers[number])
            memory = self.memory.fork(edge.i, lambda note: note.only(nodes))
        self.standing = dict.fromkeys(inside, edge.part)
        try:
            samples = self._go_on(steps, asked, named, memory)
        finally:
            self.standing = {}
        found = deviation(samples, self.reference)
        return found if math.isfinite(found) else math.inf


def _branches(memory: Memory) -> list[Memory]:
    return [memory, *(one for branch in memory._branches.values() for one in _branches(branch))]


class Costs:
    """What standing parts cost, in whole evaluations."""

    def __init__(self, trial: Trial, measure: str):
        self.trial, self.known = trial, {WHOLE: 1.0, OUTPUT: 0.0}
        for name in trial.parts:
            if name not in self.known:
                self.known[name] = trial.cached.cost((name,)) if measure == "flops" else self._seconds(name)

    @torch.no_grad()
    def _seconds(self, name: str) -> float:
        """By the clock: the least of several evaluations of the calibration noises, of the part's and of whole ones."""
        trial, found = self.trial, dict[str, float]()
        for kind, standing in (("whole", {}), ("part", {1: name})):
            took = []
            for _ in range(4):
                steps, named, memory = trial._begin()
                x, t, given = next(steps)
                memory = trial.memory.fork(0, lambda note: note.only([0]))
                memory.advance(given=trial.plan.evaluations[0].given)
                trial.standing, trial.order = standing, 1
                begin = time.perf_counter()
                float(ask(trial.cached, x, t, memory, {**named, **given}).value.sum())
                took.append(time.perf_counter() - begin)
            found[kind] = min(took)
        trial.standing = {}
        return found["part"] / found["whole"]

    def __call__(self, edge: Edge) -> float:
        last = edge.j == self.trial.plan.nfe
        return self.known[edge.part] * (edge.j - edge.i - 1) + (0.0 if last else 1.0)


def measured(trial: Trial, error: float, kept: Kept, until: float | None) -> dict[Edge, Measured]:
    """Every edge that is worth it: longer ones from an evaluation only while the shorter are within the error."""
    found: dict[Edge, Measured] = {}
    n = trial.plan.nfe
    for part in trial.parts:
        for i in range(n - 1):
            for j in range(i + 2, min(i + GAP, n) + 1):
                edge = Edge(i, j, part)
                if until is not None and time.perf_counter() > until:
                    return found
                known = kept.edges.get(edge.key)
                if known is None:
                    order = trial.best_order(edge)
                    known = kept.edges[edge.key] = Measured(trial.error(edge, order), order)
                    kept.write()
                if known.error > error:
                    break
                found[edge] = known
    kept.write(force=True)
    return found


def fingerprint(model: Denoiser) -> str:
    """What tells a model from others, by the names, shapes and sums of its tensors."""
    digest = hashlib.sha256(repr(sorted(model.describe().items(), key=lambda item: item[0])).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {float(tensor.double().sum()):.17g}".encode())
    return digest.hexdigest()


class Kept:
    """Edges that were measured, in a file to go on from."""

    def __init__(self, file: Path | None, settings: dict[str, Any]):
        self.file, self.settings, self.edges, self._fresh = file, settings, dict[str, Measured](), 0
        if file is None or not file.is_file():
            return
        data = json.loads(read_text(file))
        told = data.get("settings", {}) if data.get("format") == FORMAT else {}
        if other := [name for name, value in settings.items() if told.get(name) != value]:
            raise ValueError(
                f"{file} holds a search with other settings ({', '.join(other)}): take the same ones, or another folder"
            )
        self.edges = {
            key: Measured(math.inf if error is None else float(error), int(order))
            for key, (error, order) in data["edges"].items()
        }

    def write(self, force: bool = False) -> None:
        self._fresh += 1
        if self.file is None or (self._fresh % 16 and not force):
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        edges = {key: [one.error, one.order] for key, one in self.edges.items()}
        write_json(self.file, {"format": FORMAT, "settings": self.settings, "edges": edges})
