"""Distance of every stochastic solver's samples from the exact distribution, and of a few deterministic ones."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.accuracy import all_solvers, order
from benchmarks.peers.harness import notes_table, share, try_all
from benchmarks.peers.problems import F64, Mixture, Problem, SlicedDistance
from benchmarks.table import table

PATHS = ("vp_linear", "edm")
SAMPLES = 8192
PARTS = 2  # of each path
COMPARED = {  # deterministic
    ("diffusers", "DPM++ 2M", "karras"),
    ("diffusers", "EDM DPM++ 2M", "karras"),
    ("k-diffusion", "heun", "karras+0"),
    ("azula", "zEAB-3", "logsnr"),
    ("azula", "xEAB-3", "logsnr"),
    ("fewstep", "dpmpp-2m", "karras+0"),
    ("fewstep", "heun", "karras+0"),
    ("fewstep", "ab-3", "log-snr"),
    ("fewstep", "dpmpp-3m", "log-snr"),
}
FIRST_ORDER = {  # each library's plainest
    ("fewstep", "ddpm"),
    ("diffusers", "DDIM eta=1 (DDPM)"),
    ("diffusers", "EulerAncestral"),
    ("diffusers", "EDM SDE-DPM++ 1M"),
    ("k-diffusion", "euler_ancestral"),
    ("azula", "DDPM"),
}

Row = dict[str, Any]


@functools.cache
def _distance() -> SlicedDistance:
    return SlicedDistance(Mixture(), SAMPLES)


@functools.cache
def _pairs() -> tuple[Tensor, Tensor]:
    """Exact samples and noises, of which every start is made."""
    g = torch.Generator().manual_seed(11)
    target = Mixture()
    return target.sample(SAMPLES, g), torch.randn(SAMPLES, target.size, generator=g, dtype=F64)


def _start(r: float) -> Tensor:
    x0, eps = _pairs()
    return eps if math.isinf(r) else (x0 + r * eps) / math.sqrt(1 + r * r)


def _work(task: tuple[str, int, tuple[int, ...]]) -> list[Row]:
    path, part, nfes = task
    distance, problem = _distance(), Problem(Mixture(), path, starts=_start)
    cases = [(solver, True) for solver in all_solvers(path, stochastic=True)]
    cases += [(solver, False) for solver in all_solvers(path, stochastic=False) if solver.key in COMPARED]
    rows = []
    for solver, stochastic in cases[part::PARTS]:
        tried = try_all(solver, problem, nfes, lambda x, r: distance(x), most_failures=len(nfes))
        row: Row = {"path": path, "library": solver.library, "solver": solver.name, "grid": solver.grid}
        row |= {"stochastic": stochastic, "evaluations": tried["evaluations"], "distance": tried["scores"]}
        rows.append(row | ({"notes": tried["notes"]} if tried["notes"] else {}))
    return rows


def measure(nfes: tuple[int, ...], workers: int) -> tuple[Row, list[Row]]:
    """What was run, and one row a solver, schedule and path, its distances in the order of the budgets."""
    floor = _distance().floor  # before the processes part, so that each has the quantiles
    rows = share(_work, [(path, part, nfes) for path in PATHS for part in range(PARTS)], workers)
    return {"nfes": nfes, "floor": floor}, sorted(rows, key=order)


def _best(rows: list[Row], column: int) -> tuple[float, str] | None:
    found = [(row["distance"][column], row) for row in rows if row["distance"][column] is not None]
    if not found:
        return None
    value, row = min(found, key=lambda pair: pair[0])
    return value, f"{value:.4f} {row['library']} {row['solver']} [{row['grid']}]"


def _sides(nfes: tuple[int, ...], rows: list[Row]) -> str:
    cells = []
    for column, nfe in enumerate(nfes):
        noisy = [row for row in rows if row["stochastic"]]
        own = _best([row for row in noisy if row["library"] == "fewstep"], column)
        peer = _best([row for row in noisy if row["library"] != "fewstep"], column)
        plain = _best([row for row in noisy if (row["library"], row["solver"]) in FIRST_ORDER], column)
        quiet = _best([row for row in rows if not row["stochastic"]], column)
        ratio = f"{own[0] / peer[0]:.2f}" if own and peer else ""
        cells.append([str(nfe), *(side[1] if side else "" for side in (own, peer)), ratio])
        cells[-1] += [side[1] if side else "" for side in (plain, quiet)]
    return table(["NFE", "best of fewstep", "best peer", "ratio", "best first-order", "best deterministic"], cells)


def _every(nfes: tuple[int, ...], rows: list[Row]) -> str:
    """Every stochastic solver, at each budget on its best schedule, in the order of the mean log distance."""
    by: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["stochastic"]:
            by.setdefault((row["library"], row["solver"]), []).append(row)
    lines = []
    for (library, solver), group in by.items():
        best = [_best(group, column) for column in range(len(nfes))]
        values = [pair[0] for pair in best if pair]
        mean = sum(map(math.log, values)) / len(values) if values else math.inf
        grids = sorted(row["grid"] for row in group)
        lines.append((mean, [library, solver, ", ".join(grids), *(f"{p[0]:.4f}" if p else "" for p in best)]))
    return table(["library", "solver", "best of", *map(str, nfes)], [cells for _, cells in sorted(lines)])


def render(about: Row, rows: list[Row]) -> str:
    nfes = about["nfes"]
    text = [
        "## Stochastic solvers: distance of the samples",
        f"Sliced 2-Wasserstein distance of {SAMPLES} samples to the exact mixture ({SAMPLES} exact samples score"
        f" {about['floor']:.4f} on average), from exact states at the first noise level, one seed. The deterministic"
        f" ones are {len(COMPARED)} named beforehand, for comparison.",
    ]
    for path in PATHS:
        here = [row for row in rows if row["path"] == path]
        text += [f"### {path}", _sides(nfes, here)]
        text += ["Every stochastic solver, at each NFE on its best schedule, sorted by the mean log over the row:"]
        text += [_every(nfes, here)]
    notes = notes_table(rows)
    if notes:
        text += ["What crashed or was not finite:"]
        text += [table(["solver", "path", "schedules", "NFE", "what happened"], notes)]
    return "\n\n".join(text)
