"""What a plan can do without for an error: edges measured one by one, the cheapest path, verified and bounded.

A schedule is a path over the evaluations of a plan: an edge i -> j runs the model whole at i and j, and at those in
between a part stands, forecast through whole evaluations that lie as far apart as the edge is long. The deviation of
each edge alone is measured at the end of the run, which goes on from the state that it had at i. Deviations of small
errors that have nothing to do with each other add in squares, so the cheapest path within a budget is a shortest path
under one constraint. What the squares miss shows on fresh noises: then the budget is tightened and searched again.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.caching.budget import WHOLE, Bound, budget, parts_of
from fewstep.caching.common import OUTPUT, Cached, Recipe
from fewstep.caching.forecast import level, weighted, weights
from fewstep.caching.method import check_alone
from fewstep.core.arguments import shown
from fewstep.core.denoiser import Denoiser
from fewstep.core.files import read_text
from fewstep.core.memory import Memory, ask
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.program import program
from fewstep.core.sampler import Sampler, begin_run, memory_for
from fewstep.data.dataset import Dataset
from fewstep.report.files import write_json
from fewstep.sampling.build import plan as make_plan
from fewstep.searching.problem import data_for, draw, run_all
from fewstep.searching.shared import threads_for

GAP = 4  # whole evaluations lie at most so far apart
ORDERS = 3  # of forecasts, at most
CHECKED, BOUNDED = 32, 100  # noises that choose the schedule, and that bound its deviation
SHARE, SURE = 0.9, 0.95
ROUNDS = 8  # of tightening
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


def each_deviation(x: Tensor, reference: Tensor) -> Tensor:
    """Of each sample from its other one, relative to the norm of that, `(n,)`."""
    return (x.double() - reference.double()).flatten(1).norm(dim=1) / reference.double().flatten(1).norm(dim=1)


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


def cheapest(
    count: int, edges: dict[Edge, Measured], cost: Callable[[Edge], float], allowed: float
) -> tuple[float, float, list[Edge]]:
    """The path of edges from evaluation 0 to the end that costs least within an error: cost, error and edges.

    Errors add in squares. Of each evaluation all pairs of cost and error are kept that no other pair is better than in
    both; steps to the next evaluation are free of error and cost one evaluation.
    """
    by_start: dict[int, list[tuple[Edge, float, float]]] = {}
    for edge, found in edges.items():
        if found.error <= allowed:
            by_start.setdefault(edge.i, []).append((edge, cost(edge), found.error**2))
    labels: list[list[tuple[float, float, tuple[Edge, ...]]]] = [[] for _ in range(count + 1)]
    labels[0] = [(1.0, 0.0, ())]
    for i in range(count):
        best: list[tuple[float, float, tuple[Edge, ...]]] = []
        for label in sorted(labels[i], key=lambda one: one[:2]):
            if not best or label[1] < best[-1][1]:
                best.append(label)
        plain = 1.0 if i + 1 < count else 0.0
        for spent, square, path in best:
            labels[i + 1].append((spent + plain, square, path))
            for edge, price, more in by_start.get(i, ()):
                if square + more <= allowed**2:
                    labels[edge.j].append((spent + price, square + more, (*path, edge)))
    spent, square, path = min(labels[count], key=lambda one: one[:2])
    return spent, math.sqrt(square), list(path)


def coverage(deviations: Sequence[float], share: float = SHARE, sure: float = SURE) -> float:
    """The least of n exchangeable deviations below which a share of further ones lies with this confidence.

    The share below the r-th least is distributed as Beta(r, n + 1 - r), whatever the law of the deviations, so r is the
    first for which that is at least `share` with probability `sure`; infinite where there is none.
    """
    from scipy.stats import beta

    n = len(deviations)
    rank = next((r for r in range(1, n + 1) if beta.sf(share, r, n + 1 - r) >= sure), None)
    return math.inf if rank is None else sorted(deviations)[rank - 1]


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


@torch.no_grad()
def find_budget(
    model: Denoiser,
    error: float,
    plan: Sampler | None,
    *,
    seed: int = 0,
    calibrate: int = 16,
    seconds: float | None = None,
    measure: str = "flops",
    data: str | Path | Dataset | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Cached:
    """What `fs.cache(model, error=..., plan=...)` returns, whose arguments these are."""
    check_asked(model, error, plan, calibrate, seconds, measure)
    assert isinstance(plan, Plan)
    own = None if data is None else data_for(model, data)
    dtype = next((p.dtype for p in model.parameters() if p.dtype == torch.float64), torch.float32)
    begin = time.perf_counter()

    def noises(first: int, n: int) -> tuple[Tensor, dict[str, Any], int]:
        noise, condition = draw(model, seed, first, n, dtype, own)
        return noise, condition, first

    with threads_for(model):
        noise, condition, first = noises(0, calibrate)
        trial = Trial(model, plan, noise, condition, seed, first)
        costs = Costs(trial, measure)
        settings = {"error": error, "seed": seed, "calibrate": calibrate, "plan": json.loads(plan.to_json())}
        kept = _Kept(None if folder is None else Path(folder) / "cache-search.json", settings)
        edges = measured(trial, error, kept, None if seconds is None else begin + seconds)
        fresh = noises(calibrate, CHECKED)
        reference = run_all(plan, model, fresh[0], fresh[1], seed, fresh[2])
        allowed, tried = error, []
        while True:
            spent, predicted, path = cheapest(plan.nfe, edges, costs, allowed)
            made = made_of(model, plan, path, edges)
            found = deviation(run_all(plan, made, fresh[0], fresh[1], seed, fresh[2]), reference) if path else 0.0
            tried.append({"allowed": allowed, "predicted": predicted, "error": found, "cost": spent})
            if found <= error or not path:
                break
            # Towards what the squares missed and a little further; a few rounds of that, then nothing is left out.
            allowed = min(allowed, predicted) * min(0.95 * error / found, 0.9) if len(tried) < ROUNDS else 0.0
        more = noises(calibrate + CHECKED, BOUNDED)
        whole = run_all(plan, model, more[0], more[1], seed, more[2])
        apart = each_deviation(run_all(plan, made, more[0], more[1], seed, more[2]), whole).tolist() if path else [0.0]
        bound = Bound(coverage(apart) if path else 0.0, SHARE, SURE, BOUNDED)
        rival = fewer(plan, model, spent, (fresh, reference), seed)
    figures = {
        "asked": error,
        "error": found,
        "predicted": predicted,
        "cost": spent,
        "evaluations": plan.nfe,
        "parts": {name: costs.known[name] for name in trial.parts},
        "measure": measure,
        "tried": tried,
        "edges": len(edges),
        "noises": {"calibrated": calibrate, "checked": CHECKED, "bounded": BOUNDED, "seed": seed},
        "fewer steps": rival,
        "seconds": time.perf_counter() - begin,
    }
    return made_of(model, plan, path, edges, asdict(bound), figures)


def check_asked(
    model: Denoiser, error: float, plan: Sampler | None, calibrate: int, seconds: float | None, measure: str
) -> None:
    """`ValueError` for what cannot be searched."""
    if not 0 < error < math.inf:
        raise ValueError(f"error must be above 0 and finite: nothing can be left out without one, got {shown(error)}")
    if not isinstance(plan, Plan):
        what = "" if plan is None else f", and {plan.name!r} is none"
        raise ValueError(f"a cache is calibrated for a plan with a table, as fs.plan(model.process, ...) makes{what}")
    if not plan.fits(model.process):
        raise ValueError("the plan was made for another process: make it with fs.plan(model.process, ...)")
    if model.shape is None:
        raise ValueError("the search draws noise, so the denoiser needs a shape: set model.shape = (...)")
    if calibrate < 2:
        raise ValueError(f"calibrate must be at least 2 noises, got {calibrate}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    if measure not in ("flops", "seconds"):
        raise ValueError(f"measure is 'flops' or 'seconds', got {measure!r}")
    check_alone(model)


def measured(trial: Trial, error: float, kept: _Kept, until: float | None) -> dict[Edge, Measured]:
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


def made_of(
    model: Denoiser,
    plan: Plan,
    path: Sequence[Edge],
    edges: dict[Edge, Measured],
    bound: Any = None,
    figures: Any = None,
) -> Cached:
    """The cached model of a path."""
    rows, orders = [WHOLE] * plan.nfe, [1] * plan.nfe
    for edge in path:
        for number in range(edge.i + 1, min(edge.j, plan.nfe)):
            rows[number], orders[number] = edge.part, edges[edge].order
    solver = f"{plan.name} with noise" if plan.stochastic else plan.name
    return budget(model, rows, list(plan.moments), orders, solver, bound, figures)


def fewer(plan: Plan, model: Denoiser, cost: float, fresh: Any, seed: int) -> dict[str, Any] | None:
    """Fewer steps of the same solver that cost as much: their evaluations, and how far their samples are from the
    plan's; None where the plan's name and times do not say how to make them."""
    about = plan.about
    evaluations = math.ceil(cost - 1e-9)
    if evaluations >= plan.nfe:
        return None
    try:
        less = make_plan(
            model.process,
            about["solver"],
            nfe=evaluations,
            timesteps=about["timesteps"],
            end=about.get("end", "zero"),
            strength=about.get("strength", 1.0),
            **about.get("options", {}),
        )
    except (KeyError, ValueError):
        return None
    (noise, condition, first), reference = fresh
    found = deviation(run_all(less, model, noise, condition, seed, first), reference)
    return {"evaluations": less.nfe, "error": found}


class _Kept:
    """Edges that were measured, in a file to go on from."""

    def __init__(self, file: Path | None, settings: dict[str, Any]):
        self.file, self.settings, self.edges, self._fresh = file, settings, dict[str, Measured](), 0
        if file is None or not file.is_file():
            return
        data = json.loads(read_text(file))
        if data.get("format") != FORMAT or data.get("settings") != settings:
            raise ValueError(f"{file} holds a search with other settings: take the same ones, or another folder")
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
