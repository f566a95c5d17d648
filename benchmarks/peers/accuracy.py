"""Error of every deterministic solver on every schedule and path, against the exact probability-flow ODE."""

from __future__ import annotations

import functools
from typing import Any

from benchmarks.peers import adapter_fewstep, azula_peer, diffusers_peer, k_diffusion_peer, ode_peer
from benchmarks.peers.harness import LIBRARIES, Solver, notes_table, share, try_all
from benchmarks.peers.problems import PATHS, Mixture, Problem, Reference
from benchmarks.table import table

NFES = (4, 5, 6, 8, 10, 15, 20, 50)
BATCH = 256
PARTS = 4  # of each path
RANKED_AT = (5, 10)
RANKED = 20

Row = dict[str, Any]


@functools.cache
def reference() -> Reference:
    return Reference(Mixture(), BATCH)


def all_solvers(path: str, stochastic: bool) -> list[Solver]:
    peers = (adapter_fewstep, diffusers_peer, k_diffusion_peer, azula_peer, ode_peer)
    return [solver for peer in peers for solver in peer.solvers(path, stochastic)]


def _work(task: tuple[str, int, tuple[int, ...]]) -> list[Row]:
    path, part, nfes = task
    problem = Problem(reference().target, path, reference())
    rows = []
    for solver in all_solvers(path, stochastic=False)[part::PARTS]:
        tried = try_all(solver, problem, nfes, problem.error, most_failures=2)
        row: Row = {"path": path, "library": solver.library, "solver": solver.name, "grid": solver.grid}
        row |= {"evaluations": tried["evaluations"], "error": tried["scores"]}
        rows.append(row | ({"notes": tried["notes"]} if tried["notes"] else {}))
    return rows


def order(row: Row) -> tuple[int, int, str, str]:
    return PATHS.index(row["path"]), LIBRARIES.index(row["library"]), row["solver"], row["grid"]


def measure(nfes: tuple[int, ...], workers: int) -> tuple[Row, list[Row]]:
    """What was run, and one row a solver, schedule and path, its errors in the order of the budgets."""
    check = reference().check  # before the processes part, so that each has the trajectories
    rows = share(_work, [(path, part, nfes) for path in PATHS for part in range(PARTS)], workers)
    return {"nfes": nfes, "reference_check": check}, sorted(rows, key=order)


def ranked(rows: list[Row], path: str, column: int) -> list[tuple[float, Row]]:
    """The error and the row of every solver's best schedule, best first."""
    best: dict[tuple[str, str], tuple[float, Row]] = {}
    for row in rows:
        error = row["error"][column]
        if row["path"] != path or error is None:
            continue
        key = row["library"], row["solver"]
        if key not in best or error < best[key][0]:
            best[key] = error, row
    return sorted(best.values(), key=lambda pair: pair[0])


def _label(row: Row, library: bool = True) -> str:
    return f"{row['library'] + ' ' if library else ''}{row['solver']} [{row['grid']}]"


def _sides(nfes: tuple[int, ...], rows: list[Row]) -> str:
    """The best of each side per path and budget."""
    cells = []
    for path in PATHS:
        for column, nfe in enumerate(nfes):
            places = ranked(rows, path, column)
            own = next((p for p in places if p[1]["library"] == "fewstep"), None)
            peer = next((p for p in places if p[1]["library"] != "fewstep"), None)
            if own is None or peer is None:
                continue
            left, right = f"{own[0]:.2e} {_label(own[1], False)}", f"{peer[0]:.2e} {_label(peer[1])}"
            auto = next((error for error, row in places if row["solver"] == adapter_fewstep.AUTO), None)
            named = ["", ""] if auto is None else [f"{auto:.2e}", f"{auto / peer[0]:.2f}"]
            cells.append([path, str(nfe), *named, left, right, f"{own[0] / peer[0]:.2f}"])
    heads = ["path", "NFE", "nothing named", "times the best peer", "best of fewstep", "best peer", "ratio"]
    return table(heads, cells)


def _places(column: int, rows: list[Row]) -> str:
    """The best twenty on each path side by side, and where the best of each library stands."""
    by_path = [ranked(rows, path, column) for path in PATHS]
    cells = []
    for place in range(RANKED):
        line = [f"{ranks[place][0]:.2e} {_label(ranks[place][1])}" if place < len(ranks) else "" for ranks in by_path]
        cells.append([str(place + 1), *line])
    for library in LIBRARIES:
        line = []
        for ranks in by_path:
            found = next((i for i, (_, row) in enumerate(ranks) if row["library"] == library), None)
            if found is None:
                line.append("none")
            else:
                line.append(f"{ranks[found][0]:.2e} {_label(ranks[found][1], False)}, place {found + 1}")
        cells.append([f"best of {library}", *line])
    return table(["place", *PATHS], cells)


def render(about: Row, rows: list[Row]) -> str:
    nfes = about["nfes"]
    counts = ", ".join(f"{sum(row['library'] == library for row in rows)} of {library}" for library in LIBRARIES)
    text = [
        "## Best hand-made solver beside the best peer",
        "Relative endpoint error on the eight-component mixture with its exact denoiser: mean distance to the exact"
        f" probability-flow end point (DOP853, change at a tighter tolerance {about['reference_check']:.0e}) over its"
        f" mean norm, {BATCH} noises, the same for all. The best of every solver and schedule of each side, picked"
        " afterwards, all in one run; cases (solver, schedule, path): " + counts + ". A solver makes at most NFE"
        " evaluations. `+0` ends with a jump to sigma = 0. diffusers runs on its own timesteps and float32 tables, in"
        " the names of its schedules; it has none for vp_cont. fewstep's solvers are those its search tries, on the"
        f" rules {', '.join(adapter_fewstep.RULES)}, to both ends; `short` and `quadratic` are rules that no peer has.",
        _sides(nfes, rows),
    ]
    for nfe in RANKED_AT:
        if nfe in nfes:
            text.append(f"### The best {RANKED} solvers at {nfe} evaluations")
            text.append("Each solver of the five libraries once a path, on its best schedule there.")
            text.append(_places(nfes.index(nfe), rows))
    notes = notes_table(rows)
    if notes:
        text.append("### What crashed or was not finite")
        text.append(table(["solver", "path", "schedules", "NFE", "what happened"], notes))
    return "\n\n".join(text)
