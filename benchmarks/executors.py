"""What the executors cost and save: mixed requests, a compiled plan, parallel in time.

All on the embedded digits, one thread. `mixed`: sixteen requests of one sample with different plans, one after the
other and sharing calls; and, with a network that answers at once, what a call costs beyond it. `compiled`: ten steps
of 16 samples, eager and compiled, the compilation apart. `parallel`: calls one after the other at 50 steps. Rounds
are interleaved.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.overhead import Null
from fewstep.core.noise import Noise
from fewstep.hub.models import load
from fewstep.sampling.build import plan
from fewstep.sampling.compiled import compile
from fewstep.sampling.mixed import Request, run_mixed
from fewstep.sampling.parallel import run_parallel

ROUNDS = 7
KINDS = (("dpmpp-2m", 8), ("unipc-3", 10), ("ddim", 12), ("vab-3", 6))


def _medians(cases: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in cases}
    for run in cases.values():
        run()
    for _ in range(rounds):
        for name, run in cases.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(found) for name, found in times.items()}


def _mixed() -> list[dict[str, Any]]:
    model = load("digits")
    requests = [
        Request(plan(model.process, *KINDS[i % 4]), Noise(i).normal(0, (1, 1, 8, 8)), {"label": i % 10}, seed=i)
        for i in range(16)
    ]
    null = Null(model.process, torch.zeros(16, 1, 8, 8), "x0")
    null.shape = model.shape
    equal = [Request(plan(model.process, "dpmpp-2m", 10), one.noise, {}, one.seed) for one in requests]

    def alone() -> None:
        for one in requests:
            one.plan(model, one.noise, seed=one.seed, **one.condition)

    found = _medians(
        {"alone": alone, "mixed": lambda: run_mixed(requests, model), "call": lambda: run_mixed(equal, null)}
    )
    return [
        {"case": "16 requests one after the other", "figure": found["alone"] * 1e3, "unit": "ms"},
        {"case": "16 requests in shared calls", "figure": found["mixed"] * 1e3, "unit": "ms"},
        {"case": "a shared call of 16 requests beyond the network", "figure": found["call"] / 10 * 1e6, "unit": "us"},
    ]


def _compiled() -> list[dict[str, Any]]:
    model = load("digits")
    made, noise = plan(model.process, "dpmpp-2m", 10), Noise(0).normal(0, (16, 1, 8, 8))
    compiled = compile(made, model)
    begin = time.perf_counter()
    compiled(noise, label=3)
    first = time.perf_counter() - begin
    other = compiled.use(plan(model.process, "dpmpp-2m", 7, "karras"))
    begin = time.perf_counter()
    other(noise, label=3)
    second = time.perf_counter() - begin
    found = _medians({"eager": lambda: made(model, noise, label=3), "compiled": lambda: compiled(noise, label=3)})
    return [
        {"case": "10 steps of 16 digits, eager", "figure": found["eager"] * 1e3, "unit": "ms"},
        {"case": "10 steps of 16 digits, compiled", "figure": found["compiled"] * 1e3, "unit": "ms"},
        {"case": "compiling, once", "figure": first, "unit": "s"},
        {"case": "the first run of another schedule with the same graph", "figure": second * 1e3, "unit": "ms"},
    ]


def _parallel() -> list[dict[str, Any]]:
    model = load("digits")
    noise = Noise(0).normal(0, (4, 1, 8, 8))
    rows = []
    for solver in ("ddim", "dpmpp-2m", "ddpm"):
        made = plan(model.process, solver, 50)
        found = run_parallel(made, model, noise, 50, 1e-2, label=3)
        rows.append({"case": f"{solver}, 50 steps, tolerance 0.01: calls", "figure": found.depth, "unit": "calls"})
        rows.append({"case": f"{solver}: evaluations a sample", "figure": found.nfe, "unit": "evaluations"})
    return rows


def measure() -> list[dict[str, Any]]:
    """Rows of case, figure and unit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _mixed() + _compiled() + _parallel()
    finally:
        torch.set_num_threads(threads)
