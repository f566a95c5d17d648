"""Measures caches on the embedded models, and writes docs/caching.json: the table of the page on caching.

    python tools/caching.py                # a quarter of an hour on one core
    python tools/figures.py                # puts the table into the page

For each model, solver and number of steps: how far the samples of half of the evaluations are from those of all of
them, by fewer steps, by forecast evaluations and by the schedule found for that cost; and how far all are from the
exact solution of the same noises.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import fewstep as fs
from fewstep.caching.ab_cache import ab_cache
from fewstep.report.files import write_json
from fewstep.searching.cache_budget import within_cost
from fewstep.searching.cache_edges import deviation
from fewstep.searching.problem import conditions

FILE = Path(__file__).resolve().parents[1] / "docs" / "caching.json"
MODELS = ("digits", "digits-dit", "shapes")
SOLVERS, STEPS, N, SEED = ("ddim", "dpmpp-2m"), (50, 20, 10), 64, 77
FIRST = 10_000  # of the rows of data whose captions are drawn
EXACT = ("vab-3", "karras", 100)
SEARCHED = 20  # steps of the longest plan that a schedule is searched for: it takes their square


def measure() -> dict[str, Any]:
    rows = []
    for name in MODELS:
        model = fs.load(name)
        process, noise = model.process, fs.Noise(SEED).normal(0, (N, *model.shape))
        asked: dict[str, Any] = dict(conditions(model, None, FIRST + torch.arange(N)))
        exact = fs.plan(process, EXACT[0], nfe=EXACT[2], timesteps=EXACT[1])(model, noise, **asked)
        rival = {n: fs.plan(process, "dpmpp-3m", n)(model, noise, **asked) for n in {steps // 2 for steps in STEPS}}
        for solver in SOLVERS:
            for steps in STEPS:
                plan, half = fs.plan(process, solver, steps), steps // 2
                whole = plan(model, noise, **asked)
                made = {
                    "fewer": fs.plan(process, solver, half)(model, noise, **asked),
                    "reuse": ab_cache(plan, 2, 1, "eps")(model, noise, **asked),
                    "forecast": ab_cache(plan, 2, 3, data_std=model.facts.data_std)(model, noise, **asked),
                }
                cached = within_cost(model, plan, half, 0, 0) if steps <= SEARCHED else None
                if cached is not None:
                    made["found"] = plan(cached, noise, **asked)
                row = {"model": name, "solver": solver, "steps": steps, "half": half}
                row |= {key: deviation(x, whole) for key, x in made.items()}
                row["exact"] = {key: deviation(x, exact) for key, x in (made | {"whole": whole}).items()}
                row["exact"]["dpmpp-3m"] = deviation(rival[half], exact)
                rows.append(row)
                print(row, flush=True)
    return {"noises": N, "seed": SEED, "exact": list(EXACT), "rows": rows}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}" if value >= 1e-3 else f"{value:.1g}"


def lines(figures: dict[str, Any]) -> dict[str, list[str]]:
    """The table of deviations from the whole run, and that of distances from the exact solution."""
    keys = ("fewer", "reuse", "forecast", "found")
    heads = ["model", "sampler", "evaluations", "fewer steps", "reuse", "order 3", "found"]
    near, far = [], []
    for row in figures["rows"]:
        place = [row["model"], f"`{row['solver']}`, {row['steps']} steps", str(row["half"])]
        best = min(row[key] for key in keys if key in row)
        cells = [_number(row.get(key)) for key in keys]
        cells = [f"**{text}**" if row.get(key) == best else text for key, text in zip(keys, cells, strict=True)]
        near.append([*place, *cells])
        told = row["exact"]
        far.append(
            [
                *place[:2],
                _number(told["whole"]),
                *[_number(told.get(key)) for key in ("fewer", "forecast", "found", "dpmpp-3m")],
            ]
        )
    solver, rule, nfe = figures["exact"]
    return {
        "caching": [
            f"Deviation from the samples of all steps, relative to their norm; {figures['noises']} noises.",
            "",
            *_table(heads, near),
        ],
        "caching exact": [
            f"Distance from the exact solution (`{solver}`, {rule}, {nfe} evaluations) of the same noises.",
            "",
            *_table(["model", "sampler", "all steps", "half", "half, order 3", "half, found", "`dpmpp-3m`, half"], far),
        ],
    }


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    write_json(FILE, measure())
    print("\n".join(line for made in lines(json.loads(FILE.read_text("utf-8"))).values() for line in made))
