"""Claims of adapters that join on the way: the time that is not waited for, and what it changes."""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from claims.claim import Outcome, experiment, over_seeds, slow
from claims.common import gap, plan
from claims.parts import Denoiser, Noise
from fewstep.data.digits import load as load_digits
from fewstep.hub.models import load as load_model
from fewstep.sampling.mixed import Mixed, Request
from fewstep.serving.adapters import Adapters, factors
from fewstep.serving.engine import Engine, Job
from fewstep.serving.models import Running
from fewstep.serving.served import Served
from fewstep.training.adapter_files import save_lora
from fewstep.training.fit import fit, rows_of
from fewstep.training.lora import add_lora

STEPS, TRAINED, RANK, READING, N = 10, 300, 4, 0.2, 32
ABOUT = (
    f"digits, {N} samples, dpmpp-2m in {STEPS} steps, an adapter of rank {RANK} trained for {TRAINED} iterations on"
    " digits turned by a quarter"
)
UNIT = "relative difference from the adapter from the start on"


@functools.cache
def _folder() -> Path:
    """A folder with the adapter."""
    folder = Path(tempfile.mkdtemp(prefix="fewstep-claim-"))
    pictures, labels = load_digits("train")
    turned = rows_of(torch.rot90(pictures, 1, (2, 3)), label=labels)
    trained = fit(add_lora(load_model("digits"), RANK), turned, steps=TRAINED, batch=64, lr=2e-3, seed=0)
    save_lora(trained, folder / "turned.safetensors")
    return folder


@functools.cache
def _served() -> Served:
    return Served(load_model("digits"))


def _request(seed: int) -> Request:
    noise = Noise(seed).normal(0, (N, 1, 8, 8))
    made = plan(_served().base.process, "dpmpp-2m", STEPS)
    return Request(made, noise, {"label": [k % 10 for k in range(N)]}, seed)


@functools.cache
def _samples(by: int, seed: int) -> Tensor:
    """Samples whose last evaluations, from `by` on, have the adapter."""
    served = _served()
    with Engine(served.model, N) as engine:
        adapters = Adapters(_folder())
        model = adapters.wanted(Running("digits", served, engine, 0), "turned")[0].result()
    mixed = Mixed(served.model, N)
    ticket = mixed.add(_request(seed))
    mixed.hold(ticket, by)
    while mixed.waiting:
        mixed.step()
    mixed.change(ticket, model)
    while len(mixed):
        mixed.step()
    return mixed.pop(ticket)


def _far(by: int, seed: int) -> float:
    return gap(_samples(by, seed), _samples(0, seed))


def _seconds(by: int, seed: int) -> float:
    """From the request to its pictures, with a disk that takes its time."""

    def read(model: Denoiser, file: Path) -> Any:
        time.sleep(READING)
        return factors(model, file)

    with Engine(_served().model, N) as engine:
        adapters = Adapters(_folder(), by, read)
        begin = time.perf_counter()
        changes = adapters.wanted(Running("digits", _served(), engine, 0), "turned")
        engine.submit(Job([_request(seed)], changes=changes)).result()
        return time.perf_counter() - begin


@experiment
def _sooner(seed: int) -> Outcome:
    _seconds(0, seed)  # the network's first calls
    ours, theirs = (min(_seconds(by, seed) for _ in range(3)) for by in (4, 0))
    about = f"{ABOUT}; reading takes {READING:g} s, acts by evaluation 4; the least of three"
    return Outcome(ours, theirs, "reading it first", about, unit="seconds to the pictures")


def _half(seed: int) -> list[float]:
    return [_far(2, seed), 0.5 * _far(STEPS, seed)]


CLAIMS = (
    slow("adapter-serving", "pictures come sooner than where the adapter is read first", _sooner()),
    slow(
        "adapter-serving",
        "by evaluation 2 it draws nearly what it draws from the start",
        over_seeds(_half, "half of what no adapter differs by", ABOUT, unit=UNIT),
    ),
    slow(
        "adapter-serving",
        "the later it joins, the farther: by 1 against by 4",
        over_seeds(lambda seed: [_far(1, seed), _far(4, seed)], "joining by evaluation 4", ABOUT, unit=UNIT),
    ),
)
