"""Claims of kept references: the model's own samples, for the operations, and the time, of the pictures alone."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from claims.common import F64, Claim, Denoiser, Noise, Outcome, compared, experiment, plan, slow, tolerance
from claims.operations import operations, seconds
from claims.trained import NetworkDenoiser, fresh
from fewstep.caching.reference import KeptReferences
from fewstep.conditions.label import Label
from fewstep.conditions.picture import Picture
from fewstep.guidance.cfg import cfg
from fewstep.networks.reference import ReferenceDiT
from fewstep.processes.vp import VP
from fewstep.sampling.mixed import run_mixed

STEPS, TURNS, WIDE, REFERENCES = 20, 5, 192, 2


@functools.cache
def _model(seed: int, size: int, width: int, depth: int) -> NetworkDenoiser:
    """Two references and labels, no weight zero."""
    network = fresh(ReferenceDiT, seed, 3, size, 2, width, depth, 4, references=REFERENCES)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    shape = (3, size, size)
    return NetworkDenoiser(network.eval(), VP(), "v", shape, {"label": Label(4), "y": Picture((REFERENCES, *shape))})


def _asked(model: Denoiser, n: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
    shape = model.shape or ()
    y = Noise(seed + 100).normal(0, (n, REFERENCES, *shape)).clamp(-1, 1)
    return Noise(seed).normal(0, (n, *shape)), {"label": torch.arange(n) % 4, "y": y}


@experiment
def _same(seed: int, wrap: Callable[[Denoiser], Denoiser], how: str) -> Outcome:
    """The largest difference of three requests in shared calls, references kept, from each alone, references reread."""
    model, requests = copy.deepcopy(_model(seed, 8, 32, 2)).double(), []
    for n, steps in ((2, 7), (3, 4), (1, 5)):
        noise, named = _asked(model, n, seed + steps)
        requests.append((plan(model.process, "dpmpp-2m", steps), noise, named))
    alone = [made(wrap(model), noise, dtype=F64, **named) for made, noise, named in requests]
    found = run_mixed(requests, wrap(KeptReferences(model)), dtype=F64)
    worst = max(float((a - b).abs().max()) for a, b in zip(found, alone, strict=True))
    about = (
        f"{REFERENCES} references of 8x8, random weights, float64, requests of 7, 4 and 5 evaluations share calls{how}"
    )
    return tolerance(worst, 1e-10, about)


def _runs(seed: int) -> tuple[NetworkDenoiser, list[Callable[[], Tensor]]]:
    model = _model(seed, 32, WIDE, 4)
    noise, named = _asked(model, 2, seed)
    made = plan(model.process, "ddim", STEPS)
    return model, [lambda one=one: made(one, noise, **named) for one in (KeptReferences(model), model)]  # type: ignore[misc]


ABOUT = f"dit of 256 tokens and {REFERENCES} references of as many, width {WIDE}, depth 4, 2 samples, {STEPS} steps"


def _counted(seed: int) -> Outcome:
    figures = [operations(run) / 1e9 for run in _runs(seed)[1]]
    return compared(figures, "references read in each step", ABOUT, unit="billion operations a run")


def _timed(seed: int) -> Outcome:
    """How far the ratio of seconds lies from that of operations."""
    _, runs = _runs(seed)
    ours, theirs = (operations(run) for run in runs)
    fast, whole = seconds(runs, TURNS)
    off = abs((fast / whole) / (ours / theirs) - 1)
    about = (
        f"{ABOUT}, one thread: {fast / whole:.3f} of the seconds ({whole:.2f} s whole) for {ours / theirs:.3f} of the"
        " operations"
    )
    return tolerance(off, 0.25, about, "relative difference of the two ratios")


CLAIMS = (
    Claim("reference", "kept references give the samples of references read anew, in shared calls",
          _same(lambda model: model, "")),
    Claim("reference", "kept references give the samples of references read anew, guided, in shared calls",
          _same(lambda model: cfg(model, 2.0), ", guided by cfg")),
    slow("reference", "a run takes fewer operations", _counted),
    slow("reference", "saves as much time as operations, within a quarter", _timed),
)  # fmt: skip
