"""Posterior samplers beside azula's and deepinv's: mixtures whose posteriors are exact, one grid of noise levels."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.peers import posterior_azula, posterior_deepinv
from benchmarks.table import table
from claims.posteriors import DRAWS, OPERATORS, Cell, cell
from fewstep.timesteps.grid import make_times

SEEDS = (0, 1, 2)
PLACES = ((0.1, 20), (0.02, 20))  # noise and evaluations
OURS: dict[str, dict[str, Any]] = {
    "calibrated": {"method": "calibrated"},
    "particles": {"method": "particles", "options": {"particles": DRAWS}},
    "mmps, 3 steps": {"method": "mmps"},
    "mmps, 3 steps, ddim": {"method": "mmps", "solver": "ddim"},
    "tmpd": {"method": "tmpd"},
    "tmpd, ddim": {"method": "tmpd", "solver": "ddim"},
    "pigdm": {"method": "pigdm"},
    "dps": {"method": "dps"},
    "diffpir": {"method": "diffpir"},
    "ddrm": {"method": "ddrm"},
    "daps": {"method": "daps"},
}
PEERS = {"azula": posterior_azula.methods, "deepinv": posterior_deepinv.methods}

Row = dict[str, Any]


def _ours(problem: Cell, noise: float, nfe: int, seed: int) -> Iterator[tuple[str, float, float]]:
    for name, how in OURS.items():
        begin = time.process_time()
        try:
            value = problem.distance(problem.restored(nfe=nfe, seed=seed, **how))
        except ValueError:  # the state left the data's world
            value = math.inf
        yield name, value, time.process_time() - begin


def _theirs(library: str, problem: Cell, noise: float, nfe: int, seed: int) -> Iterator[tuple[str, float, float]]:
    times = make_times(problem.model.process, nfe, "karras", "zero")
    times[-1] = problem.model.process.t_min  # they divide by the last level, or take its logarithm
    matrix = problem.operator.matrix()
    seen = matrix.abs().sum(1) > 0  # a mask's measurement has places that hold nothing
    drawn, seconds = defaultdict(list), defaultdict(float)
    for y in problem.y:
        made = PEERS[library](problem.model, matrix[seen], y.flatten()[seen], noise, times)
        for name, draw in made.items():
            torch.manual_seed(seed)
            begin = time.process_time()
            drawn[name].append(draw(DRAWS).double())
            seconds[name] += time.process_time() - begin
    for name, parts in drawn.items():
        x = torch.stack(parts)
        yield name, problem.distance(x) if bool(torch.isfinite(x).all()) else math.inf, seconds[name]


def measure(nfes: Any = None, workers: int = 1) -> tuple[dict[str, Any], list[Row]]:
    """A row for each library, method, noise, number of evaluations and operator: means over the seeds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[Row] = []
    try:
        for noise, nfe in PLACES:
            for operator in OPERATORS:
                found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
                floors = []
                for seed in SEEDS:
                    problem = cell(operator, noise, seed)
                    floors.append(problem.floor)
                    sides = {"fewstep": _ours(problem, noise, nfe, seed)}
                    sides |= {library: _theirs(library, problem, noise, nfe, seed) for library in PEERS}
                    for library, results in sides.items():
                        for name, value, seconds in results:
                            found[library, name].append((value, seconds))
                for (library, name), pairs in found.items():
                    values, seconds_ = zip(*pairs, strict=True)
                    rows.append({
                        "library": library, "method": name, "noise": noise, "nfe": nfe, "operator": operator,
                        "distance": _mean(values), "seconds": statistics.fmean(seconds_),
                        "floor": statistics.fmean(floors),
                    })  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    return {"seeds": len(SEEDS), "draws": DRAWS}, rows


def _mean(values: Any) -> float | None:
    """The mean, None where a run diverged."""
    return statistics.fmean(values) if all(map(math.isfinite, values)) else None


def best(rows: list[Row], ours: bool, particles: bool) -> dict[tuple[float, int, str], Row]:
    """The nearest of our methods, or of the peers', in each cell; with particles counted or not."""
    found: dict[tuple[float, int, str], Row] = {}
    for row in rows:
        if (row["library"] == "fewstep") != ours or row["distance"] is None:
            continue
        if not particles and row["method"] == "particles":
            continue
        key = row["noise"], row["nfe"], row["operator"]
        if key not in found or row["distance"] < found[key]["distance"]:
            found[key] = row
    return found


def render(about: dict[str, Any], rows: list[Row]) -> str:
    lines = []
    for particles in (True, False):
        mine, theirs = best(rows, True, particles), best(rows, False, particles)
        won = sum(mine[key]["distance"] < theirs[key]["distance"] for key in theirs)
        said = "with particles counted" if particles else "without"
        lines.append(f"{said} the nearest of ours is nearer than the nearest of theirs in {won} of {len(theirs)} cells")
    pairs = []
    for name in sorted({row["method"] for row in rows if row["library"] != "fewstep"} & set(OURS)):
        own = {_key(row): row["distance"] for row in rows if (row["library"], row["method"]) == ("fewstep", name)}
        for library in PEERS:
            other = {_key(row): row["distance"] for row in rows if (row["library"], row["method"]) == (library, name)}
            if other:
                near = sum(own[key] is not None and (other[key] is None or own[key] <= other[key]) for key in other)
                pairs.append(f"{name} ({library}) in {near}")
    parts = [
        "## Posterior samplers\n\n"
        f"Mixtures of six in 16 numbers, {about['seeds']} seeds, 6 measurements x {about['draws']} draws;"
        " every method in as many steps on the levels of one grid (karras; deepinv's DiffPIR has its own levels), the"
        " denoiser exact, options as they come; azula's filter is given the noise and the level's variance as a twist."
        " The sliced Wasserstein distance to the exact posterior; seconds are of 2,400 draws on one core. "
        + "; ".join(lines)
        + f". Of {len(best(rows, True, True))} cells ours of the same name is at least as near: {', '.join(pairs)}."
    ]
    for noise, nfe in PLACES:
        mine = [row for row in rows if (row["noise"], row["nfe"]) == (noise, nfe)]
        names = sorted({(row["library"], row["method"]) for row in mine}, key=lambda one: _average(mine, one))
        cells = []
        for one in names:
            own = {row["operator"]: row for row in mine if (row["library"], row["method"]) == one}
            seconds = statistics.fmean(row["seconds"] for row in own.values())
            figures = [_said(own[operator]["distance"]) for operator in OPERATORS]
            cells.append([*one, *figures, f"{seconds:.1f}"])
        floors = {row["operator"]: row["floor"] for row in mine}
        cells.append(["", "floor of chance", *[f"{floors[operator]:.3f}" for operator in OPERATORS], ""])
        parts.append(
            f"Noise {noise:g}, {nfe} evaluations:\n\n" + table(["library", "method", *OPERATORS, "seconds"], cells)
        )
    return "\n\n".join(parts)


def _key(row: Row) -> tuple[float, int, str]:
    return row["noise"], row["nfe"], row["operator"]


def _average(rows: list[Row], one: tuple[str, str]) -> float:
    values = [row["distance"] for row in rows if (row["library"], row["method"]) == one]
    return statistics.fmean(values) if None not in values else math.inf


def _said(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.3f}" if value < 100 else f"{value:.3g}"
