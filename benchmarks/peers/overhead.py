"""Time of each library's loop beyond the network, beside a loop written by hand, in the same interleaved rounds."""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.overhead import SHAPES
from benchmarks.peers import adapter_fewstep, azula_peer, diffusers_peer, k_diffusion_peer
from benchmarks.peers.harness import Build, Loop, NullNetwork, counted
from benchmarks.table import table

STEPS = 20
FLOOR = ("by hand", "second order")
MOST_SECONDS = 1.5  # of one case in all: a slow one would only make the others wait

Row = dict[str, Any]


def _first_order(shape: tuple[int, ...], steps: int) -> tuple[Loop, int]:
    network, noise = NullNetwork(torch.randn(shape) * 0.1), torch.randn(shape)
    coefficients = [(0.9, 0.1)] * steps

    @torch.inference_mode()
    def loop() -> Tensor:
        x = noise.clone()
        for a, b in coefficients:
            x.mul_(a).add_(network(x), alpha=b)
        return x

    return counted(loop, network)


def _second_order(shape: tuple[int, ...], steps: int) -> tuple[Loop, int]:
    """DPM-Solver++ 2M with its coefficients as Python floats: three operations in place a step."""
    network, noise = NullNetwork(torch.randn(shape) * 0.1), torch.randn(shape)
    coefficients = [(0.9, 0.1, -0.02)] * steps

    @torch.inference_mode()
    def loop() -> Tensor:
        x, old = noise.clone(), None
        for a, b, c in coefficients:
            new = network(x)
            x.mul_(a).add_(new, alpha=b)
            if old is not None:
                x.add_(old, alpha=c)
            old = new
        return x

    return counted(loop, network)


def _cases() -> list[tuple[str, str, Build]]:
    libraries: list[tuple[str, dict[str, Build]]] = [
        ("by hand", {"first order": _first_order, "second order": _second_order}),
        *(
            (peer.NAME, peer.overhead_cases())
            for peer in (adapter_fewstep, diffusers_peer, k_diffusion_peer, azula_peer)
        ),
    ]
    return [(library, name, build) for library, cases in libraries for name, build in cases.items()]


@torch.no_grad()
def measure(rounds: int) -> tuple[Row, list[Row]]:
    """What was run, and one row a solver and shape.

    Microseconds an evaluation, median and least; and both over the floor's: the median of the ratios within a round,
    and the ratio of the least.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[Row] = []
    try:
        for label, shape in SHAPES.items():
            made: list[tuple[str, str, Loop, int, list[float]]] = []
            for library, name, build in _cases():
                try:
                    torch.manual_seed(0)
                    loop, calls = build(shape, STEPS)
                    loop()
                    made.append((library, name, loop, calls, []))
                except Exception as error:  # a crash is a result, too
                    note = f"{type(error).__name__}: {error}"[:160]
                    rows.append({"shape": label, "library": library, "solver": name, "note": note})
            for _ in range(rounds):
                for _, _, loop, _, times in made:
                    if sum(times) > MOST_SECONDS:
                        continue
                    begin = time.perf_counter()
                    loop()
                    times.append(time.perf_counter() - begin)
            floor = next([t / calls for t in times] for lib, name, _, calls, times in made if (lib, name) == FLOOR)
            for library, name, _, calls, times in made:
                each = [t / calls for t in times]
                ratios = [t / f for t, f in zip(each, floor, strict=False)]
                row: Row = {
                    "shape": label,
                    "library": library,
                    "solver": name,
                    "evaluations": calls,
                    "rounds": len(times),
                }
                row |= {"us_median": statistics.median(each) * 1e6, "us_least": min(each) * 1e6}
                row |= {"times_floor": statistics.median(ratios), "least_times_floor": min(each) / min(floor)}
                rows.append({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()})
            print(f"  {label}: {len(made)} cases", file=sys.stderr, flush=True)
    finally:
        torch.set_num_threads(threads)
    return {"steps": STEPS, "rounds": rounds}, rows


def render(about: Row, rows: list[Row]) -> str:
    by: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by.setdefault((row["library"], row["solver"]), {})[row["shape"]] = row
    cells = []
    for (library, solver), shapes in by.items():
        line = [library, solver, str(next((row["evaluations"] for row in shapes.values() if "evaluations" in row), ""))]
        for shape in SHAPES:
            row = shapes[shape]
            if "note" in row:
                line += [row["note"].replace("|", "/"), "", ""]
            else:
                line += [f"{row['us_least']:.1f}", f"{row['least_times_floor']:.1f}", f"{row['times_floor']:.1f}"]
        cells.append(line)
    columns = ["library", "solver", "evaluations"]
    for shape in SHAPES:
        columns += [f"{shape}: us, least", "times floor, least", "times floor, median"]
    return (
        "## Overhead of the libraries' loops\n\n"
        f"Time an evaluation beyond the network, which returns a tensor made beforehand: {about['steps']} steps,"
        f" float32, one thread, at most {about['rounds']} interleaved rounds (fewer for a case that has taken"
        f' {MOST_SECONDS} s). The floor is the loop of second order written by hand. "Least" compares the shortest'
        ' times; "median" is the median of the ratios to the floor within a round. Inside the loop is what a user'
        " runs for one batch: for diffusers `set_timesteps`, for azula its schedule; k-diffusion gets its sigmas and"
        " fewstep its plan, unless it says otherwise.\n\n" + table(columns, cells)
    )
