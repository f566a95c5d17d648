"""What the libraries have in common here: a solver to try, one try at it, and the sharing of work between processes."""

from __future__ import annotations

import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.problems import Problem

LIBRARIES = ("fewstep", "diffusers", "k-diffusion", "azula", "torchdiffeq")

# The samples x / alpha and the noise ratio sigma / alpha at the end, or None where the budget is too small.
Outcome = tuple[Tensor, float] | None
Run = Callable[[Problem, int], Outcome]


@dataclass(frozen=True)
class Solver:
    """A library's solver on one of its schedules.

    `run(problem, nfe)` makes at most `nfe` evaluations. `again` is the second way to run it, where the first one
    crashes, and `remedy` says what that does.
    """

    library: str
    name: str
    grid: str
    run: Run
    again: Run | None = None
    remedy: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.library, self.name, self.grid


@dataclass
class NullNetwork:
    """Returns a tensor made beforehand and counts its calls."""

    out: Tensor
    calls: int = 0

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        self.calls += 1
        return self.out


# Builds the loop of one case: (shape, steps) -> (a function without arguments, its evaluations).
Loop = Callable[[], Any]
Build = Callable[[tuple[int, ...], int], tuple[Loop, int]]


def counted(loop: Loop, network: NullNetwork) -> tuple[Loop, int]:
    """The loop and the evaluations of one run of it."""
    loop()
    return loop, network.calls


@torch.no_grad()
def attempt(solver: Solver, problem: Problem, nfe: int) -> tuple[Outcome, str | None]:
    """The outcome and a note: None, or what had to be done for there to be one. A crash is raised."""
    problem.nfe = 0
    try:
        return solver.run(problem, nfe), None
    except Exception as error:
        if solver.again is None:
            raise
        problem.nfe = 0
        return solver.again(problem, nfe), f"{solver.remedy}: {type(error).__name__}"


def try_all(
    solver: Solver, problem: Problem, nfes: Iterable[int], score: Callable[[Tensor, float], float], most_failures: int
) -> dict[str, list[Any]]:
    """Evaluations made, score (None where there is none) and notes `[nfe, text]` over the budgets.

    After `most_failures` results that are not finite the rest is left out.
    """
    evaluations: list[int | None] = []
    scores: list[float | None] = []
    notes: list[list[Any]] = []
    failures = 0
    for nfe in nfes:
        value, made, note = None, None, None
        if failures < most_failures:
            try:
                torch.manual_seed(5)
                outcome, note = attempt(solver, problem, nfe)
                if outcome is not None:
                    value, made = score(outcome[0].double(), outcome[1]), problem.nfe
                    if not math.isfinite(value):
                        value, note, failures = None, "not finite", failures + 1
            except Exception as error:  # a crash is a result, too
                note = f"{type(error).__name__}: {error}"[:160]
        if note is not None:
            notes.append([nfe, note])
        evaluations.append(made)
        scores.append(None if value is None else float(f"{value:.5g}"))
    return {"evaluations": evaluations, "scores": scores, "notes": notes}


def _one_thread() -> None:
    torch.set_num_threads(1)


def share(work: Callable[[Any], list[dict[str, Any]]], tasks: list[Any], workers: int) -> list[dict[str, Any]]:
    """The rows of every task, from one process or two, with a line on stderr for each task that is done."""
    rows: list[dict[str, Any]] = []
    begin = time.perf_counter()

    def collect(answers: Iterable[list[dict[str, Any]]]) -> None:
        for i, answer in enumerate(answers, 1):
            rows.extend(answer)
            seconds = time.perf_counter() - begin
            print(f"  {i} of {len(tasks)} parts, {len(rows)} rows, {seconds:.0f} s", file=sys.stderr, flush=True)

    if workers == 1:
        _one_thread()
        collect(map(work, tasks))
    else:
        with multiprocessing.get_context("fork").Pool(workers, _one_thread) as pool:
            collect(pool.imap_unordered(work, tasks, 1))
    return rows


def notes_table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """One table row a solver, path and kind of trouble: which schedules and budgets it has it on."""
    found: dict[tuple[str, str, str], tuple[set[str], set[int]]] = {}
    for row in rows:
        for nfe, text in row.get("notes", ()):
            grids, budgets = found.setdefault((f"{row['library']} {row['solver']}", row["path"], text), (set(), set()))
            grids.add(row["grid"])
            budgets.add(nfe)
    return [
        [solver, path, ", ".join(sorted(grids)), ", ".join(map(str, sorted(budgets))), text.replace("|", "/")]
        for (solver, path, text), (grids, budgets) in sorted(found.items())
    ]
