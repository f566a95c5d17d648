"""What a plan can do without for an error: the cheapest path of edges, verified and bounded.

Deviations of small errors that have nothing to do with each other add in squares, so the cheapest schedule within a
budget is a shortest path under one constraint. What the squares miss shows on fresh noises: then the budget is
tightened and searched again.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.caching.budget import WHOLE, budget
from fewstep.caching.common import Cached
from fewstep.caching.method import check_alone
from fewstep.caching.recipe import Bound
from fewstep.core.arguments import shown
from fewstep.core.denoiser import Denoiser
from fewstep.core.plan import Plan
from fewstep.core.sampler import Sampler, solver_of
from fewstep.data.dataset import Dataset
from fewstep.sampling.build import plan as make_plan
from fewstep.searching.cache_edges import Costs, Edge, Kept, Measured, Trial, deviation, fingerprint, measured
from fewstep.searching.problem import data_for, draw, run_all
from fewstep.searching.shared import threads_for

CHECKED, BOUNDED = 32, 100  # noises that choose the schedule, and that bound its deviation
SHARE, SURE = 0.9, 0.95
ROUNDS = 8  # of tightening


def each_deviation(x: Tensor, reference: Tensor) -> Tensor:
    """Of each sample from its other one, relative to the norm of that, `(n,)`."""
    return (x.double() - reference.double()).flatten(1).norm(dim=1) / reference.double().flatten(1).norm(dim=1)


Label = tuple[float, float, tuple[Edge, ...]]  # what a path costs, its error in squares, and its edges


def front(count: int, edges: dict[Edge, Measured], cost: Callable[[Edge], float], allowed: float) -> list[Label]:
    """The paths of edges from evaluation 0 to the end within an error, than which no other is better in both cost and
    error, cheapest first.

    Errors add in squares; a step to the next evaluation is free of error and costs one. Every evaluation keeps the
    pairs of cost and error that no other of it is better than.
    """
    by_start: dict[int, list[tuple[Edge, float, float]]] = {}
    for edge, found in edges.items():
        if found.error <= allowed:
            by_start.setdefault(edge.i, []).append((edge, cost(edge), found.error**2))
    labels: list[list[Label]] = [[] for _ in range(count + 1)]
    labels[0] = [(1.0, 0.0, ())]
    for i in range(count + 1):
        best: list[Label] = []
        for label in sorted(labels[i], key=lambda one: one[:2]):
            if not best or label[1] < best[-1][1]:
                best.append(label)
        labels[i] = best
        plain = 1.0 if i + 1 < count else 0.0
        for spent, square, path in best if i < count else ():
            labels[i + 1].append((spent + plain, square, path))
            for edge, price, more in by_start.get(i, ()):
                if square + more <= allowed**2:
                    labels[edge.j].append((spent + price, square + more, (*path, edge)))
    return labels[count]


def coverage(deviations: Sequence[float], share: float = SHARE, sure: float = SURE) -> float:
    """The least of n exchangeable deviations below which a share of further ones lies with this confidence.

    The share below the r-th least is distributed as Beta(r, n + 1 - r), whatever the law of the deviations, so r is the
    first for which that is at least `share` with probability `sure`; infinite where there is none.
    """
    from scipy.stats import beta

    n = len(deviations)
    rank = next((r for r in range(1, n + 1) if beta.sf(share, r, n + 1 - r) >= sure), None)
    return math.inf if rank is None else sorted(deviations)[rank - 1]


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
        settings = {"model": fingerprint(model), "error": error, "seed": seed, "calibrate": calibrate}
        settings["plan"] = json.loads(plan.to_json())
        kept = Kept(None if folder is None else Path(folder) / "cache-search.json", settings)
        edges = measured(trial, error, kept, None if seconds is None else begin + seconds)
        fresh = noises(calibrate, CHECKED)
        reference = run_all(plan, model, fresh[0], fresh[1], seed, fresh[2])
        allowed, tried = error, []
        while True:
            spent, square, path = front(plan.nfe, edges, costs, allowed)[0]
            predicted = math.sqrt(square)
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
    made = made_of(model, plan, path, edges, asdict(bound), figures)
    made.take(replace(made.facts, plan=plan))
    return made


@torch.no_grad()
def within_cost(model: Denoiser, plan: Plan, cost: float, seed: int, first: int, calibrate: int = 16) -> Cached | None:
    """The plan's cached run with the least error that costs no more than so many whole evaluations, or None.

    Measured on `calibrate` noises of a stream from `first` on; nothing is verified: that is the caller's.
    """
    noise, condition = draw(model, seed, first, calibrate, torch.float32)
    trial = Trial(model, plan, noise, condition, seed, first)
    edges = measured(trial, 1.0, Kept(None, {}), None)
    found = [label for label in front(plan.nfe, edges, Costs(trial, "flops"), 1.0) if label[0] <= cost + 1e-9]
    return made_of(model, plan, found[-1][2], edges) if found and found[-1][2] else None


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


def made_of(
    model: Denoiser,
    plan: Plan,
    path: Sequence[Edge],
    edges: dict[Edge, Measured],
    bound: Any = None,
    figures: Any = None,
) -> Cached:
    """The cached model of a path; the first forecasts go through as many whole evaluations as there are."""
    rows, orders = [WHOLE] * plan.nfe, [1] * plan.nfe
    for edge in path:
        before = sum(row == WHOLE for row in rows[: edge.i + 1])
        for number in range(edge.i + 1, min(edge.j, plan.nfe)):
            rows[number], orders[number] = edge.part, min(edges[edge].order, before)
    return budget(model, rows, list(plan.moments), orders, solver_of(plan), bound=bound, figures=figures)


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
