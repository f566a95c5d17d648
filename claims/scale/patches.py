"""Claims of patch workers: how far their samples lie from one worker's, for the bytes that they send.

All at four workers with one synchronous evaluation, 64 noises, classes in turn, 20 steps of ddim, each noise against
the same run by one worker. The embedded transformer of digits has 4x4 tokens, so that each worker has one row; a finer
one of 8x8 tokens is trained here, whose workers have two. Bytes are keys and values alone, of all evaluations.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from claims.common import Claim, Outcome, compared, experiment, gap, over_seeds, plan, slow, tolerance
from claims.parts import EDM, Denoiser, Noise
from claims.trained import NetworkDenoiser, NoiseLevels, fit, fresh
from fewstep.conditions.label import Label
from fewstep.data.digits import load as digits
from fewstep.hub.models import load
from fewstep.networks.dit import DiT
from fewstep.processes.vp import VP
from fewstep.scale.patches import PatchParallel, distrifusion

WORKERS, N, STEPS, SOLVER = 4, 64, 20, "ddim"
EMBEDDED, FINE = "embedded digits-dit of 4x4 tokens", "dit of 8x8 tokens trained on digits"
TRAINED, STD = 1000, 0.7520736801762171  # steps; the digits' standard deviation, as the embedded model has it
UNIT = "relative difference from one worker's samples"


@functools.cache
def _model(name: str) -> Denoiser:
    if name == EMBEDDED:
        return load("digits-dit")
    network = fresh(DiT, 0, 1, 8, 1, 64, 4, 10)
    model = NetworkDenoiser(network, EDM(), "x0", (1, 8, 8), {"label": Label(10)}, "edm", STD)
    images, labels = digits("train")

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        rows = torch.randint(len(images), (count,), generator=generator)
        return images[rows], {"label": labels[rows]}

    levels = NoiseLevels(model.process, "log-normal", -0.8, 1.2)
    return fit(model, draw, steps=TRAINED, batch=64, lr=2e-3, levels=levels, seed=0)


@functools.cache
def _run(name: str, border: int | None, warmup: int, workers: int, steps: int, seed: int) -> tuple[Tensor, int]:
    """Samples, and the bytes of keys and values that all workers send."""
    model = _model(name)
    noise = Noise(seed).normal(0, (N, *(model.shape or ())))
    made = plan(model.process, SOLVER, steps)
    found = made.run(PatchParallel(model, workers, border, warmup), noise, label=torch.arange(N) % 10)
    return found.samples, found.report["patches"]["bytes"] if workers > 1 else 0


def _error(name: str, border: int | None, warmup: int, seed: int) -> float:
    return gap(_run(name, border, warmup, WORKERS, STEPS, seed)[0], _run(name, None, 1, 1, STEPS, seed)[0])


def _said(border: int | None, warmup: int) -> str:
    if not warmup:
        return "no exchange at all"
    return "the whole stale map" if border is None else f"a stale border of {border}"


def _about(name: str, ways: tuple[tuple[int | None, int], ...], seed: int) -> str:
    sent = [_run(name, border, warmup, WORKERS, STEPS, seed)[1] / N / 1024 for border, warmup in ways]
    told = " against ".join(f"{size:.0f}" for size in sent)
    return f"{name}, {WORKERS} workers, {STEPS} steps of {SOLVER}, {N} noises; {told} kB of keys and values a sample"


def _nearer(name: str, ours: tuple[int | None, int], theirs: tuple[int | None, int]) -> Any:
    """The errors of two exchanges, (border, warm-up)."""

    def run(seed: int) -> Outcome:
        def figures(number: int) -> list[float]:
            return [_error(name, *ours, number), _error(name, *theirs, number)]

        return over_seeds(figures, _said(*theirs), _about(name, (ours, theirs), seed), unit=UNIT)(seed)

    return run


def _fewer_steps(name: str, border: int | None) -> Any:
    """The error beside that of one worker in a quarter of the steps, which computes as long."""

    def run(seed: int) -> Outcome:
        def figures(number: int) -> list[float]:
            few, whole = (_run(name, None, 1, 1, steps, number)[0] for steps in (STEPS // WORKERS, STEPS))
            return [_error(name, border, 1, number), gap(few, whole)]

        against = f"one worker in {STEPS // WORKERS} steps, as much computing as one of {WORKERS} has"
        return over_seeds(figures, against, _about(name, ((border, 1),), seed), unit=UNIT)(seed)

    return run


@experiment
def _bytes(seed: int, name: str, border: int, share: float) -> Outcome:
    """Bytes of the stale evaluations, in units of the whole map's."""
    sent = [_run(name, far, 1, WORKERS, STEPS, seed)[1] for far in (border, None)]
    first = [_run(name, far, 1, WORKERS, 1, seed)[1] for far in (border, None)]
    ours, theirs = (all_ - one for all_, one in zip(sent, first, strict=True))
    errors = [_error(name, far, 1, seed) for far in (border, None)]
    about = (
        f"{_about(name, ((border, 1), (None, 1)), seed)}, the synchronous evaluation's {first[0] / N / 1024:.0f} kB"
        f" among them and left out of the share; error {errors[0]:.3f} against {errors[1]:.3f}"
    )
    return compared([ours / theirs, share], "30 %, as the paper saves about 70 %", about, unit="share of the bytes")


@experiment
def _fresh(seed: int, workers: int) -> Outcome:
    """The largest difference of samples when every attention waits for what is fresh."""
    network = fresh(DiT, seed, 3, 32, 4, 64, 3, 4)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model = NetworkDenoiser(network.eval(), VP(), "v", (3, 32, 32), {"label": Label(4)})
    noise, made = Noise(seed).normal(0, (2, 3, 32, 32)), plan(model.process, SOLVER, 5)
    found = [made(one, noise, label=1) for one in (distrifusion(model, workers, None), model)]
    about = f"dit of 8x8 tokens, random weights, pictures of 32x32, {workers} workers, 5 steps of {SOLVER}, float32"
    return tolerance(float((found[0] - found[1]).abs().max()), 1e-5, about)


NOTHING, WHOLE = (0, 0), (None, 1)
CLAIMS = (
    *(Claim("distrifusion", f"{n} workers that wait for all keys and values draw one worker's samples", _fresh(n))
      for n in (2, 4, 8)),
    *(claim for name, borders in ((EMBEDDED, (1, 2)), (FINE, (1, 2, 4))) for claim in (
        slow("distrifusion", f"stays nearer than workers that do not exchange: {name}", _nearer(name, WHOLE, NOTHING)),
        slow("distrifusion", f"stays nearer than one worker in a quarter of the steps: {name}",
             _fewer_steps(name, None)),
        slow("pcpp", f"a border of 1 stays nearer than one worker in a quarter of the steps: {name}",
             _fewer_steps(name, 1)),
        slow("pcpp", f"a border of 1 takes no more than 30 % of the whole map's bytes: {name}", _bytes(name, 1, 0.3)),
        *(slow("pcpp", f"a border of {w} stays nearer than no exchange: {name}", _nearer(name, (w, 1), NOTHING))
          for w in borders),
        *(slow("pcpp", f"a border of {w} stays nearer than one of {v}: {name}", _nearer(name, (w, 1), (v, 1)))
          for v, w in zip((0, *borders), borders, strict=False)),
        *(slow("pcpp", f"a border of {w} is no farther than the whole map: {name}", _nearer(name, (w, 1), WHOLE))
          for w in borders),
    )),
)  # fmt: skip
