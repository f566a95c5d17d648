"""`fs.accelerate(model, nfe=4)`: reference, search, learn, verdict."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fewstep.acceleration.cached import cached_rows
from fewstep.acceleration.distilled import student_rows
from fewstep.acceleration.verdict import Judge, choose, judge
from fewstep.core.arguments import checked
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import suggest
from fewstep.core.methods import Method, card
from fewstep.core.noise import VERSION
from fewstep.core.plan import Plan
from fewstep.core.words import number_of
from fewstep.data.dataset import Dataset
from fewstep.searching.candidates import Watch, fitted, hand_made, rank, unwatched
from fewstep.searching.job import Job
from fewstep.searching.learn import learn
from fewstep.searching.olss import olss
from fewstep.searching.problem import Problem, data_for, draw
from fewstep.searching.reference import error_estimate, solve
from fewstep.searching.shared import Runs, threads_for

METHODS = (
    Method(
        "accelerate",
        claim="searched, learned and judged; never worse than the best hand-made plan",
        use="accelerate",
    ),
)

REFERENCE_NFE = 100
EXACT = 16  # how far below the best hand-made plan's error that of a reference to learn from has to be
SHOWN = ("endpoint", "frechet")
OLSS_POINTS, OLSS_NOISES = 61, 48
FEWEST = 384  # noises in all: with fewer, some that end in another mode decide what is learned and promised


@dataclass(frozen=True)
class Accelerated:
    """The result: the model, its best plan, and what was measured on the way.

    `rows` is the verdict, best first: one dict a sampler with name, solver, timesteps, end, planned_nfe, nfe, n,
    endpoint, median, frechet, seconds, `low` and `high` (what the mean endpoint error is on as many fresh noises, 95 %
    sure) and `accuracy` (of samples drawn for a label or caption, where a metric can tell). `figures` is JSON: sizes,
    the reference's error, what learning did.
    """

    denoiser: Denoiser
    plan: Plan
    rows: list[dict[str, Any]]
    figures: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the model with its plan and a card; `fs.load` and `fewstep sample` take the folder."""
        from fewstep.hub.models import save

        return save(self.denoiser, folder, plan=self.plan, card=self.card())

    def card(self) -> str:
        cost = f"{number_of(self.plan.nfe, 'evaluation')} a sample."
        lines = ["# An accelerated fewstep model", "", cost, ""]
        lines += [f"- {note}" for note in self.notes]
        heads = ("sampler", "evaluations", "endpoint error", "median", "on fresh noises, 95 %", "Frechet distance")
        lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for row in self.rows[:12]:
            found = [row.get(key) for key in ("endpoint", "median", "frechet")]
            figures = [f"{value:.4g}" if value is not None else "" for value in found]
            between = f"{row['low']:.3g} to {row['high']:.3g}" if row.get("low") is not None else ""
            cells = (row["name"], row["nfe"], figures[0] or "diverged", figures[1], between, figures[2])
            lines.append(f"| {' | '.join(map(str, cells))} |")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Sizes:
    """How many noises to learn from, to hold out, and to judge on."""

    train: int
    held_out: int
    verdict: int

    @property
    def total(self) -> int:
        return self.train + self.held_out + self.verdict


def _sizes(
    model: Denoiser, nfe: int, seconds: float, noises: int | None, dtype: torch.dtype, data: Dataset | None = None
) -> Sizes:
    """Enough to learn from (forty residuals a parameter, 128 to 2048 noises), 128 held out, 512 to judge.

    When the reference would take over half of the budget for so many (but not below `FEWEST`), or when a smaller number
    is given: two fifths of it to learn from at most, three twentieths held out, the rest to judge.
    """
    parameters = 2 * nfe + 1 + nfe * (nfe + 1) // 2
    train = min(2048, max(128, 40 * parameters // math.prod(model.shape or (1,))))
    wanted = Sizes(train, 128, 512)
    if noises is None:
        noise, condition = draw(model, 0, 0, 32, dtype, data)
        time_ = torch.tensor(model.process.t_max, dtype=dtype, device=noise.device)
        with torch.no_grad():
            costs = []
            for _ in range(4):  # the first call warms up; the least of several is the machine's, not its neighbours'
                begin = time.perf_counter()
                float(model(noise, time_, **condition).value.sum())
                costs.append(time.perf_counter() - begin)
            cost = min(costs)
        noises = max(FEWEST, int(seconds / 2 / (cost * REFERENCE_NFE) * 32))
    if noises >= wanted.total:
        return wanted
    train, held_out = min(train, 2 * noises // 5), min(128, 3 * noises // 20)
    return Sizes(train, held_out, noises - train - held_out)


@checked
def accelerate(
    model: Denoiser,
    nfe: int = 4,
    *,
    seconds: float = 60.0,
    metric: str = "endpoint",
    seed: int = 0,
    noises: int | None = None,
    iterations: int | None = None,
    progress: bool = False,
    data: str | Path | Dataset | None = None,
    cache: bool = False,
    distill: str | None = None,
    watch: Watch = unwatched,
) -> Accelerated:
    """The best sampler of a model at `nfe` evaluations.

    (a) The probability-flow ODE is solved for fresh noises by a third-order method in 100 evaluations, with an estimate
    of its error (in 50 for the noises to learn from, where that is exact enough). (b) Every deterministic solver x
    timestep rule x end point is scored at `nfe`, and the universal plans and that of OLSS. (c) Times and coefficients
    of the best ones are fitted to land on the reference, by Gauss-Newton steps that stop early on held-out noises.
    (d) All are judged on noises that neither search nor learning has seen. The best of the judged is returned: never
    something worse than the best hand-made plan.

    Args:
        seconds: budget for (c); (a), (b) and (d) take about as long again.
        metric: "endpoint" (distance to the reference from the same noise) or "frechet" (distance of distributions, to
            the model's data where known, else to the reference's samples): what the returned plan is best in.
        noises: how many in all, to learn from, to hold out and to judge on; where not given, up to 2688 as the budget
            allows. With `iterations` (of the fit, in place of `seconds`) it makes the result repeatable to the bit.
        data: where the conditions of the noises come from, row by row, and what "frechet" compares with. Needed by
            models that take a picture, such as bridges; by default classes in turn, and the model's own data.
        cache: longer plans, cached until they cost as much, are judged along (from ten evaluations on); where one of
            them is the best, the model returned is cached, for that plan.
        distill: a distiller's name: a student is distilled for as long again (`seconds`, or `iterations`) and judged
            along; where it is the best, it is the model returned. Methods that do not keep the pairing of noise and
            sample are judged by "frechet" alone.
        watch: is told what happens, as figures: "stage" (text); "tried" (name, nfe, error, n) of each plan in each
            round of the search; "learned" (nfe, iteration, error) after each iteration; "judged" (role, name, nfe,
            error) of each row of the verdict; and "call" before calls of the network. What it raises ends the work.

    Raises:
        ValueError: an unknown metric, nfe below 1, a model without a shape.
    """
    if metric not in SHOWN:
        raise suggest("metric", metric, SHOWN)
    if isinstance(nfe, bool) or int(nfe) != nfe or nfe < 1:
        raise ValueError(f"nfe must be a whole number of at least 1, got {nfe!r}")
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    if noises is not None and noises < 40:
        raise ValueError(f"noises must be at least 40, got {noises}")
    if distill is not None:
        pairing = card(distill, "distiller")[0].facts["pairing"]
        if metric == "endpoint" and not pairing:
            raise ValueError(f"students by {distill!r} do not keep the pairing of noise and sample: metric='frechet'"
                             " judges them")  # fmt: skip
    if model.shape is None:
        raise ValueError("accelerate draws noise, so the denoiser needs a shape: set model.shape = (...)")
    given = None if data is None else data_for(model, data)
    dtype = torch.float32
    clock = time.perf_counter()
    with _Progress(progress, watch) as bar, threads_for(model):
        sizes = _sizes(model, nfe, seconds, noises, dtype, given)
        bar.stage(f"reference: {sizes.verdict} noises, {REFERENCE_NFE} evaluations")
        first = sizes.train + sizes.held_out
        unseen = solve(model, seed, first, sizes.verdict, REFERENCE_NFE, dtype, given, bar.call)
        error = error_estimate(model, unseen, REFERENCE_NFE)
        spent = time.perf_counter() - clock
        return _search(
            model, nfe, seed, sizes, Runs(model, unseen), error, bar,
            seconds=seconds, metric=metric, iterations=iterations, data=given, spent=spent, cache=cache,
            distill=distill,
        )  # fmt: skip


def accelerate_for(
    model: Denoiser,
    nfe: int,
    unseen: Runs,
    error: float,
    *,
    seed: int,
    noises: int,
    iterations: int,
    progress: bool,
    watch: Watch = unwatched,
) -> Accelerated:
    """`accelerate`, judged on a problem that is solved already, whose reference has the error given, and on which plans
    may have run.

    `noises` are learned from and held out, five to three; the problem's must be of another stream than `seed`.
    """
    train = 5 * noises // 8
    with _Progress(progress, watch) as bar, threads_for(model):
        sizes = Sizes(train, noises - train, len(unseen.problem))
        return _search(
            model, nfe, seed, sizes, unseen, error, bar,
            seconds=math.inf, metric="endpoint", iterations=iterations, data=None, spent=0.0,
        )  # fmt: skip


def _search(
    model: Denoiser,
    nfe: int,
    seed: int,
    sizes: Sizes,
    unseen: Runs,
    error: float,
    bar: _Progress,
    *,
    seconds: float,
    metric: str,
    iterations: int | None,
    data: Dataset | None,
    spent: float,
    cache: bool = False,
    distill: str | None = None,
) -> Accelerated:
    """(b), (c) and (d) of `accelerate`, where the verdict's noises are solved with an error that is known."""
    clock = time.perf_counter()
    took = {"reference": spent}

    def lap(name: str) -> None:
        nonlocal clock
        took[name], clock = took.get(name, 0.0) + time.perf_counter() - clock, time.perf_counter()

    def learnt_from(evaluations: int) -> tuple[Problem, Problem]:
        bar.stage(f"reference: {sizes.train + sizes.held_out} noises to learn from, {evaluations} evaluations")
        dtype, count = unseen.problem.noise.dtype, sizes.train + sizes.held_out
        both = solve(model, seed, 0, count, evaluations, dtype, data, bar.call)
        lap("reference")
        return both.part(0, sizes.train), both.part(sizes.train, len(both))

    # Half of the evaluations are exact enough to learn from as long as what they miss is far below what is to be
    # learned; the verdict is measured against all of them.
    train, held_out = learnt_from(REFERENCE_NFE // 2)
    bar.stage(f"search: every hand-made plan at {number_of(nfe, 'evaluation')}")
    plans = [*hand_made(model.process, nfe), *fitted(model.process, nfe, float(train.reference.double().std()))]
    candidates = rank([*plans, *_projected(model, nfe, seed, data)], model, held_out, bar.watch)
    if not candidates:
        raise ValueError(f"no solver can do with {number_of(nfe, 'evaluation')}")
    lap("search")
    if not error <= candidates[0].score / EXACT:
        train, held_out = learnt_from(REFERENCE_NFE)

    bar.stage("learning times and coefficients", total=1.0)
    learned, facts = learn(
        model, candidates, train, held_out, seconds=seconds, iterations=iterations, advance=bar.fraction,
        watch=bar.watch,
    )  # fmt: skip
    lap("learn")
    bar.stage("verdict on unseen noises")
    rows = judge(model, candidates, learned, unseen, REFERENCE_NFE, metric, data)
    for row in rows:
        if row["role"] != "raced":
            bar.watch("judged", {key: row[key] for key in ("role", "name", "nfe")} | {"error": row["endpoint"]})
    lap("verdict")
    if cache:
        bar.stage(f"caches that cost {number_of(nfe, 'evaluation')}")
        rows += cached_rows(model, rows, nfe, seed, Judge(model, unseen.problem, data))
        rows.sort(key=lambda row: math.inf if row[metric] is None else row[metric])
        lap("caches")
    if distill is not None:
        bar.stage(f"a student by {distill}")
        judged = Judge(model, unseen.problem, data)
        rows += student_rows(model, distill, nfe, seconds, iterations, seed, data, judged, held_out, metric)
        rows.sort(key=lambda row: math.inf if row[metric] is None else row[metric])
        lap("student")

    chosen, notes = choose(rows, metric, learned, candidates)
    reference_row = next(row for row in rows if row["role"] == "reference")
    notes.append(
        f"The reference is {reference_row['name']} with {REFERENCE_NFE} evaluations; with half of them it moves by"
        f" {error:.2g} of the samples' norm."
    )
    plan = chosen["plan"]
    figures = {
        "nfe": plan.nfe,
        "metric": metric,
        "seed": seed,
        "noise_version": VERSION,
        "noises": {"train": len(train), "held_out": len(held_out), "verdict": len(unseen.problem)},
        "reference_nfe": REFERENCE_NFE,
        "reference_error": error,
        "searched": len(candidates),
        "learning": facts,
        "seconds": took,
        "frechet_against": rows[0]["frechet_against"],
    }
    made = chosen.get("denoiser", model)
    for row in rows:
        row.pop("plan")
        row.pop("denoiser", None)
    return Accelerated(made, plan, rows, figures, notes)


def _projected(model: Denoiser, nfe: int, seed: int, data: Dataset | None) -> list[Plan]:
    """OLSS's plan: another start to learn from, whose coefficients are the model's own already."""
    if nfe + 2 > OLSS_POINTS:
        return []
    half = REFERENCE_NFE // 2  # exact enough for a start
    with Job(model, nfe, method="olss", seed=seed, noises=OLSS_NOISES, reference_nfe=half, data=data) as job:
        olss(job, points=OLSS_POINTS)
    return [] if job.best is None else [job.best]


class _Progress:
    """Rich progress of the stages, on stderr, or nothing; `watch` is told of them."""

    def __init__(self, wanted: bool, watch: Watch):
        self.wanted, self.watch = wanted, watch
        self.fraction: Callable[[float], None] | None = None

    def __enter__(self) -> _Progress:
        if self.wanted:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.bar.start()
            self.task: Any = None
        return self

    def call(self) -> None:
        self.watch("call", {})

    def stage(self, text: str, total: float | None = None) -> None:
        self.watch("stage", {"text": text})
        if not self.wanted:
            return
        self._finish()
        self.task = self.bar.add_task(text, total=total)
        task = self.task
        self.fraction = (lambda done: self.bar.update(task, completed=done)) if total is not None else None

    def _finish(self) -> None:
        if self.task is not None:
            self.bar.update(self.task, total=1.0, completed=1.0)

    def __exit__(self, *_: object) -> None:
        if self.wanted:
            self._finish()
            self.bar.stop()
