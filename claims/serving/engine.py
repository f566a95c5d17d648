"""Claims of the engine of a server: calls that requests share, and samples that sharing does not change."""

from __future__ import annotations

import functools
import threading
import time
from typing import Any

import torch
from torch import Tensor

from claims.claim import Outcome, experiment, slow, tolerance
from claims.parts import Denoiser, Noise
from fewstep.core.prediction import Prediction
from fewstep.guidance.guide import guide
from fewstep.hub.models import load as load_model
from fewstep.sampling.build import plan
from fewstep.sampling.mixed import run_mixed
from fewstep.sampling.sample import sample
from fewstep.serving.engine import Engine, Job
from fewstep.serving.halves import Halves, Process
from fewstep.serving.served import Limits, Served, Wanted, numbered

STEPS, SCALES, N, BATCH = (4, 10, 25), (1.0, 2.0), 48, 64
MIX = f"{N} requests of one digit, {', '.join(map(str, STEPS))} steps at guidance 1 and 2, calls of {BATCH}"


class Waiting(Denoiser):
    """A model whose calls are counted, and whose first one waits until all requests are there."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.model, self.calls, self.go = model, 0, threading.Event()
        self.take(model.facts)

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        self.go.wait(60)
        self.calls += 1
        return self.model(x, t, **condition)


def _wanted(seed: int) -> list[Wanted]:
    every = [(steps, scale) for steps in STEPS for scale in SCALES]
    return [
        Wanted(numbered(1000 * seed + k, 1), label=k % 10, solver="dpmpp-2m", steps=steps, guidance=scale)
        for k in range(N)
        for steps, scale in [every[k % len(every)]]
    ]


def _served(exact: bool = False) -> tuple[Served, Waiting]:
    model = Waiting(load_model("digits"))
    model.go.set()
    return Served(model, exact), model


@experiment
def _calls(seed: int, whole: bool) -> Outcome:
    """Calls of the engine's network, beside those of requests of equal plans together, or one after the other."""
    served, model = _served()
    model.calls = 0
    requests = [one for w in _wanted(seed) for one in served.requests(w, BATCH, Limits())]
    model.go.clear()
    with Engine(served.model, BATCH) as engine:
        results = [engine.submit(Job([one])) for one in requests]
        model.go.set()
        for one in results:
            one.result()
        ours = engine.mixed.calls
    if whole:
        return Outcome(ours, sum(STEPS), "requests of equal plans together, to their end", MIX, unit="network calls")
    theirs = sum(one.plan.nfe for one in requests)
    return Outcome(ours, theirs, "one request at a time", MIX, unit="network calls")


@experiment
def _bits(seed: int) -> Outcome:
    """The largest difference of exact samples in shared calls from those of a run of their own."""
    served, _ = _served(exact=True)
    model = load_model("digits")
    wanted = [w for w in _wanted(seed) if w.guidance == 1.0]
    requests = [one for w in wanted for one in served.requests(w, BATCH, Limits())]
    found = run_mixed(requests, served.model, BATCH)
    worst = 0.0
    for one, samples in zip(wanted, found, strict=True):
        ((own, _),) = one.seeds
        alone = sample(model, 16, label=one.label, seed=own, steps=one.steps, solver=one.solver)[:1]
        worst = max(worst, float((samples - alone).abs().max()))
    return tolerance(worst, 1e-12, f"{len(wanted)} of {MIX}, against runs of 16 rows", "largest difference")


@functools.cache
def _guided(seed: int) -> tuple[float, float, float]:
    """The largest difference of guided samples by two processes, and the seconds of both."""
    model = load_model("shapes")
    made, noise = plan(model.process, "dpmpp-2m", 10), Noise(seed).normal(0, (32, 3, 32, 32))
    worker = Process(model, 1)
    try:
        both, one = guide(Halves(model, [worker]), "cfg", scale=2.0), guide(model, "cfg", scale=2.0)
        seconds: dict[str, list[float]] = {"both": [], "one": []}
        for _ in range(4):
            for name, guided in (("both", both), ("one", one)):
                begin = time.perf_counter()
                found = made(guided, noise, text="a red circle")
                seconds[name].append(time.perf_counter() - begin)
                if name == "both":
                    ours = found
    finally:
        worker.close()
    return float((ours - found).abs().max()), min(seconds["both"]), min(seconds["one"])


@experiment
def _halves(seed: int, what: str) -> Outcome:
    about = "32 scenes of shapes at guidance 2, dpmpp-2m in 10 steps, one thread a process"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        worst, both, one = _guided(seed)
    finally:
        torch.set_num_threads(threads)
    if what == "samples":
        return tolerance(worst, 1e-3, about, "largest difference")
    return Outcome(both, one, "both halves in one process", about, unit="seconds, the least of four")


CLAIMS = (
    slow("engine", "mixed plans share calls that whole plans cannot", _calls(True)),
    slow("engine", "and those that run one at a time all the less", _calls(False)),
    slow("engine", "an exact sample has the same bits whatever shares its calls", _bits()),
    slow("halves", "guidance on two processes gives the same samples", _halves("samples")),
    slow("halves", "and gives them sooner", _halves("seconds")),
)  # fmt: skip
