"""A server under load: who shares calls with whom, ten thousand requests over HTTP, and what the engine itself costs.

Loads: requests of one picture arrive as a Poisson process; each takes 4, 10 or 25 steps at guidance 1 or 2, all six
equally often. Three ways to serve them, with the same network in one thread and the same arrivals:

- step-level: the engine, in which requests join and leave between network calls;
- one at a time: in the order of arrival, each to its end;
- request-level: the first that waits and all that wait for an equal plan, together to their end.

Capacity is what the engine draws when all are there at once. Latencies are from arrival to samples.
"""

from __future__ import annotations

import gc
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.overhead import Null
from fewstep.core.noise import Noise
from fewstep.hub.models import load
from fewstep.report.grid import to_pixels
from fewstep.sampling.build import plan
from fewstep.sampling.mixed import Request, run_mixed
from fewstep.sampling.sample import sample
from fewstep.serving.engine import Engine, Full, Job
from fewstep.serving.pictures import picture_pixels
from fewstep.serving.served import Limits, Served, Wanted, numbered

MODELS, STEPS, SCALES = ("digits", "shapes"), (4, 10, 25), (1.0, 2.0)
LOADS = (0.3, 0.7, 0.95)
BATCH, SECONDS, CALIBRATION = 64, 20.0, 192
BEYOND, QUEUE = 1.5, 128
REQUESTS, CONNECTIONS, CHECKED = 10_000, 64, 50
CALLS, COUNTS = 200, (1, 16, 64)


@dataclass
class Timed:
    """One request of a load: what is wanted, when it comes, and when its samples are there."""

    wanted: Wanted
    at: float
    request: Request | None = None
    done: float | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def end(self, now: float) -> None:
        self.done = now
        self.over.set()


def wanted(name: str, number: int, draw: random.Random) -> Wanted:
    how = {"steps": draw.choice(STEPS), "guidance": draw.choice(SCALES), "solver": "dpmpp-2m"}
    about = {"label": number % 10} if name == "digits" else {"text": "a red circle"}
    return Wanted(numbered(number, 1), **about, **how)


def load_of(served: Served, name: str, rate: float, seconds: float, seed: int) -> list[Timed]:
    draw, at, found = random.Random(seed), 0.0, []
    while (at := at + draw.expovariate(rate)) < seconds:
        found.append(Timed(wanted(name, len(found), draw), at))
    for one in found:
        (one.request,) = served.requests(one.wanted, BATCH, Limits())
    return found


def step_level(served: Served, arrivals: Sequence[Timed], queue: int = 100_000) -> Callable[[Timed], bool]:
    engine = Engine(served.model, BATCH, queue)

    def submit(one: Timed) -> bool:
        try:
            result: Future[Any] = engine.submit(Job([one.request], finish=lambda samples: samples))
        except Full:
            return False
        result.add_done_callback(lambda _: one.end(time.perf_counter()))
        return True

    submit.close = engine.close  # type: ignore[attr-defined]
    return submit


def in_turn(served: Served, arrivals: Sequence[Timed], together: bool) -> Callable[[Timed], bool]:
    """Whole requests: alone, or those of an equal plan together."""
    waiting: list[Timed] = []
    wake, ending = threading.Condition(), threading.Event()

    def work() -> None:
        while True:
            with wake:
                while not waiting and not ending.is_set():
                    wake.wait()
                if not waiting:
                    return
                first = waiting[0]
                group = [first]
                if together:
                    group = [one for one in waiting if one.wanted.steps == first.wanted.steps][:BATCH]
                for one in group:
                    waiting.remove(one)
            run_mixed([one.request for one in group], served.model)
            now = time.perf_counter()
            for one in group:
                one.end(now)

    thread = threading.Thread(target=work)
    thread.start()

    def submit(one: Timed) -> bool:
        with wake:
            waiting.append(one)
            wake.notify()
        return True

    def close() -> None:
        with wake:
            ending.set()
            wake.notify()
        thread.join()

    submit.close = close  # type: ignore[attr-defined]
    return submit


WAYS: dict[str, Callable[..., Any]] = {
    "step-level": step_level,
    "one at a time": lambda served, arrivals: in_turn(served, arrivals, False),
    "request-level": lambda served, arrivals: in_turn(served, arrivals, True),
}


def run_load(submit: Any, arrivals: list[Timed], patience: float) -> dict[str, Any]:
    """Latencies in seconds of those that were taken and done within `patience` after the last arrival."""
    gc.collect()
    begin = time.perf_counter()
    taken = []
    for one in arrivals:
        while (left := begin + one.at - time.perf_counter()) > 0:
            time.sleep(min(left, 0.01))
        if submit(one):
            taken.append(one)
    end = time.perf_counter() + patience
    for one in taken:
        one.over.wait(max(0.0, end - time.perf_counter()))
    done = [one for one in taken if one.done is not None]
    late = sorted(one.done - begin - one.at for one in done if one.done is not None)
    last = max((one.done - begin for one in done if one.done is not None), default=0.0)
    return {
        "requests": len(arrivals),
        "refused": len(arrivals) - len(taken),
        "unfinished": len(taken) - len(done),
        "throughput": len(done) / last if last else 0.0,
        **{f"p{q}": float(np.quantile(late, q / 100)) if late else float("nan") for q in (50, 95, 99)},
    }


def saturated(served: Served, name: str, way: str, count: int) -> float:
    """Requests a second when all of them are there from the beginning."""
    every = load_of(served, name, 1e9, count * 1e-9, 7)[:count]
    for one in every:
        one.at = 0.0
    submit = WAYS[way](served, every)
    found = run_load(submit, every, 600.0)
    submit.close()
    return float(found["throughput"])


def batching() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in MODELS:
        served = Served(load(name))
        for way in WAYS:
            saturated(served, name, way, 12)  # plans, and the network's first calls
        full = {way: saturated(served, name, way, CALIBRATION if way != "one at a time" else 48) for way in WAYS}
        rows += [{"part": "full", "model": name, "way": way, "throughput": full[way]} for way in WAYS]
        capacity = full["step-level"]
        for share in LOADS:
            for way in WAYS:
                arrivals = load_of(served, name, share * capacity, SECONDS, round(100 * share))
                submit = WAYS[way](served, arrivals)
                # A way that cannot keep up is not waited for longer than the load itself took.
                found = run_load(submit, arrivals, SECONDS)
                submit.close()
                rows.append({"part": "load", "model": name, "way": way, "load": share, **found})
        arrivals = load_of(served, name, BEYOND * capacity, SECONDS, 1)
        submit = step_level(served, arrivals, QUEUE)
        found = run_load(submit, arrivals, 120.0)
        submit.close()
        rows.append({"part": "beyond", "model": name, "load": BEYOND, "capacity": capacity, **found})
    return rows


def overhead() -> list[dict[str, Any]]:
    """Microseconds of a call beyond the network, with one that answers at once."""
    process, rows = load("digits").process, []
    made = plan(process, "dpmpp-2m", CALLS)
    for count in COUNTS:
        null = Null(process, torch.zeros(count, 1, 8, 8), "x0")
        null.shape = (1, 8, 8)
        requests = [Request(made, Noise(k).normal(0, (1, 1, 8, 8))) for k in range(count)]

        def mixed(requests: list[Request] = requests, null: Null = null) -> None:
            run_mixed(requests, null)

        def engine(requests: list[Request] = requests, null: Null = null, count: int = count) -> None:
            with Engine(null, count) as running:
                for one in [running.submit(Job([one])) for one in requests]:
                    one.result()

        class Ready(Null):
            """For calls that have fewer rows: the engine begins before all are there."""

            def forward(self, x: torch.Tensor, t: torch.Tensor, **condition: Any) -> Any:
                answer = super().forward(x, t, **condition)
                return answer.replaced(answer.value[: len(x)])

        null.__class__ = Ready
        times: dict[str, list[float]] = {"run_mixed": [], "engine": []}
        for _ in range(7):
            for name, case in (("run_mixed", mixed), ("engine", engine)):
                begin = time.perf_counter()
                case()
                times[name].append((time.perf_counter() - begin) / CALLS * 1e6)
        rows += [
            {"part": "overhead", "requests": count, "case": name, "us": statistics.median(found)}
            for name, found in times.items()
        ]
    return rows


def _resident(pid: int) -> float:
    """MB of a process."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def http_load() -> list[dict[str, Any]]:
    """Ten thousand requests of one picture by 64 connections to a server in a process of its own."""
    command = [sys.executable, "-m", "fewstep", "serve", "digits", "--exact", "--port", "0", "--queue", "48"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    port = int(process.stderr.readline().split("127.0.0.1:")[1].split("/")[0])
    lock, left = threading.Lock(), iter(range(REQUESTS))
    statuses: dict[str, int] = {}
    answers: dict[int, list[bytes]] = {}
    memory: list[tuple[int, float]] = []

    def body(number: int) -> bytes:
        return json.dumps({"label": number % 10, "seed": number, "steps": 4, "solver": "dpmpp-2m"}).encode()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                number = next(left, None)
                if number is not None and number % 500 == 0:
                    memory.append((number, _resident(process.pid)))
            if number is None:
                return connection.close()
            while True:
                connection.request("POST", "/v1/images/generations", body(number), {"content-type": "application/json"})
                answer = connection.getresponse()
                data = answer.read()
                with lock:
                    statuses[str(answer.status)] = statuses.get(str(answer.status), 0) + 1
                if answer.status != 429:
                    break
                time.sleep(0.05)
            if answer.status == 200:
                found = json.loads(data)["data"]
                with lock:
                    answers.setdefault(number, []).extend(b64decode(one["b64_json"]) for one in found)

    begin = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    process.terminate()
    process.wait(60)
    model, wrong = load("digits"), 0
    checked = list(range(0, REQUESTS, CHECKED))
    for number in checked:  # in a batch that is large enough for the same bits
        own = sample(model, 16, label=number % 10, seed=number, steps=4, solver="dpmpp-2m")[:1]
        wrong += not np.array_equal(picture_pixels(answers[number][0]), to_pixels(own)[0])
    settled = [point for point in memory if point[0] >= REQUESTS // 5]
    slope = float(np.polyfit([n for n, _ in settled], [mb for _, mb in settled], 1)[0]) * 1000
    return [
        {
            "part": "http",
            "requests": REQUESTS,
            "connections": CONNECTIONS,
            "seconds": seconds,
            "statuses": statuses,
            "lost": REQUESTS - len(answers),
            "doubled": sum(len(found) != 1 for found in answers.values()),
            "checked": len(checked),
            "wrong": wrong,
            "memory_mb": [round(mb, 1) for _, mb in memory],
            "mb_per_1000_requests": slope,
        }
    ]


def measure() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return [*overhead(), *batching(), *http_load()]
