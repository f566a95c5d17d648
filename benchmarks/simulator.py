"""The simulated service beside a real one: 1 and 2 workers that serve the same requests, and calls of patch workers.

Real requests arrive by the wall clock. A process of its own gives each to the worker with the fewest evaluations to
make; each worker is a process with one thread, whose loop is `Mixed`. The simulation is told the mean seconds of the
calls of this run by their rows, how calls differ from these, as the machine may have other work, and when the requests
arrived; what it is to find is who waits for whom. Then the service is simulated up to a thousand workers, from the
seconds of calls and messages measured beforehand, and drawn as docs/images/scale.png.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.memory import Memory, ask
from fewstep.core.noise import Noise
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.hub.models import load
from fewstep.networks.dit import DiT
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.mixed import Mixed, Request
from fewstep.scale.calls import Calls, Link, PatchCalls, measure_calls, measure_link
from fewstep.scale.divided import strips_of
from fewstep.scale.patches import distrifusion
from fewstep.scale.scaling import Point, Way, draw, scaling
from fewstep.scale.simulate import Requests, Served, poisson, simulate
from fewstep.scale.workers import Group, start

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "scale.png"
STEPS, BATCH, COUNT, LOAD = {4: 1.0, 8: 1.0, 16: 1.0}, 16, 300, 0.7
ROWS, EVALUATIONS, SHARE = (1, 2, 4, 8, 16), 60, 0.7
SMALL, LARGE = "digits-dit, 16 tokens", "dit, 1,024 tokens"


def _large() -> NetworkDenoiser:
    """A transformer of 32x32 tokens, width 192 and depth 6, with random weights, none zero."""
    network = DiT(3, 64, 2, 192, 6, None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return NetworkDenoiser(network.eval(), VP(), "v", (3, 64, 64))


def _rounds(
    model: Denoiser, rows: tuple[int, ...] = ROWS, repeats: int = 5, clock: Callable[[], float] = time.process_time
) -> list[float]:
    made = plan(model.process, "ddim", 4 if len(rows) < len(ROWS) else 8)
    return list(measure_calls(model, rows, repeats, made, clock=clock).seconds)


def _worker(
    group: Group, model: Denoiser, requests: dict[str, Tensor], board: dict[str, Tensor], replicas: int
) -> list[list[float]]:
    """A worker, or behind the last one what gives the requests out: they meet at a board of shared tensors.

    A worker returns the rows and seconds of each of its calls, with what its loop does between two of them.
    """
    mine = group.rank
    if mine < replicas:
        _rounds(model)
    _meet(group)
    if mine == replicas:
        board["begin"].fill_(time.perf_counter() + 0.2)
    _meet(group)
    begin, count = float(board["begin"]), len(requests["arrive"])
    if mine == replicas:
        for number, arrive in enumerate(requests["arrive"].tolist()):
            time.sleep(max(begin + arrive - time.perf_counter(), 0.0))
            owner = int((board["given"] - board["done"]).argmin())
            board["given"][owner] += int(requests["steps"][number])
            board["owner"][number] = owner
        return []
    plans = {steps: plan(model.process, "ddim", steps) for steps in STEPS}
    mixed, tickets, seen, calls = Mixed(model, BATCH), dict[int, int](), 0, list[list[float]]()
    steps, then = requests["steps"].tolist(), time.perf_counter()
    while seen < count or len(mixed):
        while seen < count and (owner := int(board["owner"][seen])) >= 0:
            if owner == mine:
                noise = Noise(0, seen).normal(0, (1, *(model.shape or ())))
                tickets[mixed.add(Request(plans[steps[seen]], noise, {"label": seen % 10}))] = seen
            seen += 1
        if not len(mixed):
            time.sleep(2e-4)
            then = time.perf_counter()
            continue
        made = min(len(mixed), BATCH)
        finished = mixed.step()
        now = time.perf_counter()
        for ticket in finished:
            mixed.pop(ticket)
            board["finished"][tickets[ticket]] = now - begin
        board["done"][mine] += made
        calls.append([float(made), now - then])
        then = now
    return calls


def _meet(group: Group) -> None:
    room = {peer: torch.empty(1) for peer in range(group.size) if peer != group.rank}
    group.exchange([(peer, torch.zeros(1)) for peer in room], list(room.items())).wait()


def _real(replicas: int, rate: float) -> tuple[Requests, Calls, list[float], np.ndarray]:
    """Requests, the mean seconds of the calls that served them, how calls differ from these, and when each request was
    finished."""
    requests = poisson(rate * replicas, STEPS, COUNT * replicas, seed=replicas)
    shared = {"arrive": torch.from_numpy(requests.arrive), "steps": torch.from_numpy(requests.steps.copy())}
    board = {
        "begin": torch.zeros(1, dtype=torch.float64),
        "given": torch.zeros(replicas, dtype=torch.int64),
        "done": torch.zeros(replicas, dtype=torch.int64),
        "owner": torch.full((len(requests),), -1),
        "finished": torch.zeros(len(requests), dtype=torch.float64),
    }
    for tensor in (*shared.values(), *board.values()):
        tensor.share_memory_()
    found = start(_worker, replicas + 1, load("digits-dit"), shared, board, replicas, timeout=300)
    seconds: dict[int, list[float]] = {}
    for rows, took in (call for worker in found for call in worker):
        seconds.setdefault(int(rows), []).append(took)
    calls = Calls(tuple(sorted(seconds)), tuple(fmean(seconds[rows]) for rows in sorted(seconds)))
    spread = [one / fmean(took) for took in seconds.values() for one in took]
    return requests, calls, spread, board["finished"].numpy()


def _served() -> list[dict[str, Any]]:
    """Real and simulated, of the same requests."""
    rows, rate = [], LOAD / (fmean(STEPS) * _alone())
    for replicas in (1, 2):
        requests, calls, spread, finished = _real(replicas, rate)
        real = Served(finished - requests.arrive, finished, requests.rows, 0.0, 0.0)
        simulated = simulate(requests, calls, replicas, max_batch=BATCH, spread=spread)
        about = {"case": "service", "workers": replicas, "requests": len(requests), "rate": rate * replicas}
        about |= {"utilisation": simulated.utilisation, "batch": simulated.batch}
        for name in ("p50", "p95", "p99", "throughput"):
            about[name] = [getattr(real, name), getattr(simulated, name)]
        rows.append(about | {"mean": [float(one.latency.mean()) for one in (real, simulated)]})
    return rows


def _alone() -> float:
    """Seconds of a call of one row, in a process as the workers are."""
    return float(start(_first, 1, load("digits-dit"), timeout=300)[0])


def _first(group: Group, model: Denoiser) -> float:
    return _rounds(model, clock=time.perf_counter)[0]


def _evaluation(group: Group, model: Denoiser, workers: int, rows: int) -> list[float]:
    """Seconds of an evaluation by patch workers, of which a group of one computes all: of the worker's own thread, and
    until the answer is there. The least of many, as other work of the machine only adds."""
    patches = distrifusion(model, workers).on(group)
    memory, x = Memory(rows, [0.5] * EVALUATIONS), Noise(0).normal(0, (rows, *(model.shape or ())))
    took, t = list[tuple[float, float]](), torch.tensor(0.5)
    with torch.no_grad():
        for _ in range(EVALUATIONS):
            memory.advance()
            own, begin = time.thread_time(), time.perf_counter()
            ask(patches, x, t, memory, {})
            took.append((time.thread_time() - own, time.perf_counter() - begin))
    return [min(column) for column in zip(*took[2:-1], strict=True)]


def _pair(group: Group) -> list[float]:
    link = measure_link(group)
    return [link.latency, link.bandwidth]


def _patched(models: dict[str, Denoiser], link: Link) -> list[dict[str, Any]]:
    """Evaluations by one worker and by two, without the loop of `Mixed`."""
    rows = []
    for name, model in models.items():
        count, fewer = (8, 4) if name == SMALL else (2, 1)
        half, one = (start(_evaluation, 1, model, 1, n, timeout=300)[0] for n in (fewer, count))
        two = np.max(start(_evaluation, 2, model, 2, count, timeout=300), 0).tolist()
        found = _divided(model, Calls((fewer, count), (half[0], one[0])), link, 2)
        simulated = [found.computing(count), found(count)]
        rows.append({"case": "patches", "network": name, "rows": count, "one": one, "two": two, "simulated": simulated})
    return rows


def _divided(model: Denoiser, calls: Calls, link: Link, workers: int, border: int | None = None) -> PatchCalls:
    network = next(part for part in model.modules() if isinstance(part, DiT))
    numbers = int(np.prod(model.shape or ()))
    return PatchCalls(calls, strips_of(network, workers), link, network.width, network.depth, numbers, border)


def _table(group: Group, model: Denoiser, rows: tuple[int, ...], repeats: int) -> list[float]:
    return _rounds(model, rows, repeats)


def measure() -> list[dict[str, Any]]:
    """Rows of the case "service", "patches", "calls", "link" and "scaling"; draws the picture."""
    models: dict[str, Denoiser] = {SMALL: load("digits-dit"), LARGE: _large()}
    served = _served()
    tables = {}
    for name, rows, repeats in ((SMALL, ROWS, 5), (LARGE, (1, 2, 4), 2)):
        tables[name] = Calls(rows, tuple(start(_table, 1, models[name], rows, repeats, timeout=300)[0]))
    latency, bandwidth = map(float, np.mean(start(_pair, 2, timeout=300), 0))
    link = Link(latency, bandwidth)
    measured = [
        {"case": "calls", "network": name, "rows": one.rows, "seconds": one.seconds} for name, one in tables.items()
    ]
    link_row = {"case": "link", "latency": latency, "bandwidth": bandwidth, "cores": os.cpu_count()}
    return [*served, *_patched(models, link), *measured, link_row, *scaled(models, tables, link)]


def scaled(models: dict[str, Denoiser], tables: dict[str, Calls], link: Link) -> list[dict[str, Any]]:
    """The rows of the case "scaling", and their picture."""
    panels: dict[str, list[Point]] = {}
    for name, workers in ((SMALL, 4), (LARGE, 8)):
        ways = (
            Way("one request at a time", tables[name], "none"),
            Way("whole runs in batches", tables[name], "whole"),
            Way("batches step by step (data parallel)", tables[name]),
            Way("step by step, several patch workers a replica", _divided(models[name], tables[name], link, workers),
                patches=workers),
        )  # fmt: skip
        panels[f"{name}, {workers} patches"] = scaling(ways, load=SHARE)
    draw(panels, SHARE, PICTURE)
    return [{"case": "scaling", "network": name, **one.as_dict()} for name, own in panels.items() for one in own]


def render(rows: list[dict[str, Any]]) -> str:
    """The section of RESULTS.md."""
    cases = {case: [row for row in rows if row["case"] == case] for case in ("service", "patches", "calls", "scaling")}
    link = next(row for row in rows if row["case"] == "link")
    served = [
        [str(row["workers"]), f"{row['utilisation']:.0%}", f"{row['batch']:.2f}"]
        + [f"{row[name][0]:.3g}, {row[name][1]:.3g}" for name in ("throughput", "mean", "p50", "p95", "p99")]
        for row in cases["service"]
    ]
    patched = [
        [row["network"], str(row["rows"])]
        + [f"{1e3 * row[name][0]:.1f}, {1e3 * row[name][1]:.1f}" for name in ("one", "two", "simulated")]
        for row in cases["patches"]
    ]
    tables = [
        f"{row['network']}: "
        + ", ".join(f"{n}: {1e3 * s:.1f}" for n, s in zip(row["rows"], row["seconds"], strict=True))
        for row in cases["calls"]
    ]
    ends = [
        [row["network"], row["way"], str(row["workers"])]
        + [f"{row[name]:.3g}" for name in ("p50", "p95", "p99", "throughput")]
        + [f"{row['utilisation']:.0%}"]
        for row in cases["scaling"]
        if row["workers"] in (8, 1000)
    ]
    return (
        "## The simulated service\n\nThe embedded transformer of digits behind `Mixed`, one thread a worker, requests"
        f" of {', '.join(map(str, STEPS))} evaluations at random times, {LOAD:.0%} of what workers could serve one"
        f" request at a time, {COUNT} requests a worker; real, then simulated from the seconds of the run's calls,"
        " their means by rows and how calls of equal rows differ. Latencies in seconds, throughput in samples a second."
        " Real calls that take long come in a row, when the machine has other work; simulated ones do not.\n\n"
        + _lines(["workers", "busy", "rows a call", "throughput", "mean", "median", "95 %", "99 %"], served)
        + "\n\nThe least milliseconds of an evaluation by one worker and by two patch workers over gloo, which see all"
        " of each other's stale keys and values: what a worker's thread computes, and until the answer is there. The"
        " simulation knows what one worker computes for these rows and for half of them, and the messages"
        f" ({1e6 * link['latency']:.0f} us each and {link['bandwidth'] / 1e9:.2g} GB a second, measured); it has a core"
        " for each worker, and sending costs their threads nothing, which shows where calls are short. Other work"
        f" shared the {link['cores']} cores.\n\n"
        + _lines(["network", "rows", "one worker", "two, real", "two, simulated"], patched)
        + f"\n\nSimulated at {SHARE:.0%} of what the workers could serve one request at a time, runs of 10, 20 and 50"
        f" evaluations (60 %, 30 % and 10 %), calls of at most 16 rows (docs/images/scale.png has 1 to 1,000 workers)."
        f" Milliseconds of a call by its rows, {'; '.join(tables)}.\n\n"
        + _lines(["network", "way", "workers", "median, s", "95 %", "99 %", "samples a second at most", "busy"], ends)
    )


def _lines(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
