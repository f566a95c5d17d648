"""Claims of students that are adapters: one step of the embedded digits, of under 5 % of the weights.

Both sides are the same adapter on the same pairs for as many iterations; what is added to the loss differs.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from claims.claim import Run, over_seeds, slow
from fewstep.core.methods import made
from fewstep.core.student import default_start
from fewstep.distillation.distill import AVERAGE, plan_of
from fewstep.distillation.hipa import edges
from fewstep.distillation.method import Setting
from fewstep.distillation.state import DistillState
from fewstep.hub.models import load
from fewstep.searching.problem import Problem, run_all
from fewstep.searching.reference import solve

PAIRS, ITERATIONS, BATCH, RATE = 1024, 250, 48, 4e-3
N, FIRST, NFE = 512, 1 << 20, 50  # noises judged, the number of the first, evaluations of the reference
EDGE = 0.5  # brightness a pixel from which a slope is an edge
PLAIN = {"features": 0.0, "fourier": 0.0, "edges": 0.0}
ABOUT = f"embedded digits, an adapter of under 5 % of the weights, {PAIRS} pairs, {ITERATIONS} iterations of {BATCH}"


@functools.cache
def teacher() -> Any:
    return load("digits")


@functools.cache
def problem(seed: int) -> Problem:
    return solve(teacher(), seed, FIRST, N, NFE, torch.float32)


@functools.cache
def samples(plain: bool, seed: int) -> Tensor:
    model, std = teacher(), float(teacher().data_std)
    own = Setting(
        model, model, default_start(model.process, std), 1, ITERATIONS, data_std=std, batch=BATCH, lr=RATE,
        ema=AVERAGE, seed=seed,
    )  # fmt: skip
    work = made("distiller", "hipa", 1, pairs=PAIRS, plan="dpmpp-2m", **(PLAIN if plain else {}))(own)
    state = DistillState(work, {}, seed=seed, batch=BATCH, accelerator=None)
    state.run(ITERATIONS)
    student = state.averaged().eval().requires_grad_(False)
    its_plan, judged = plan_of(own.process, work.kind, 1, own.start, work.times()), problem(seed)
    return run_all(its_plan, student, judged.noise, judged.condition, judged.seed, judged.first)


def spectrum(x: Tensor) -> Tensor:
    """Mean power of pictures by the radius of the frequency, from half of Nyquist up to it."""
    power = torch.fft.fft2(x.double(), norm="ortho").abs().square().mean((0, 1))
    f = torch.fft.fftfreq(len(power), dtype=torch.float64)
    radius = (f[:, None].square() + f.square()).sqrt() * 2
    rings = [(radius > low) & (radius <= low + 0.125) for low in (0.5, 0.625, 0.75, 0.875)]
    return torch.stack([power[ring].mean() for ring in rings if ring.any()])


def lost(x: Tensor, seed: int) -> float:
    """Mean relative error of the spectrum above half of Nyquist."""
    own, real = spectrum(x), spectrum(problem(seed).reference)
    return float(((own - real).abs() / real).mean())


def drawn(x: Tensor) -> Tensor:
    """Where a picture has an edge, along either axis."""
    return edges(x.float()).abs() > EDGE


def f1(x: Tensor, seed: int) -> float:
    own, real = drawn(x), drawn(problem(seed).reference)
    hit = float((own & real).sum())
    return 2 * hit / float(own.sum() + real.sum())


def _beside(figure: Any, better: str, unit: str) -> Run:
    return over_seeds(
        lambda s: [figure(samples(plain, s), s) for plain in (False, True)],
        "the same adapter by the squared error alone", ABOUT, better, unit,
    )  # fmt: skip


CLAIMS = (
    slow("hipa", "one step is nearer to the teacher's spectrum above half of Nyquist",
         _beside(lost, "low", "relative error of the radial spectrum")),
    slow("hipa", "one step has more of the teacher's edges", _beside(f1, "high", "F1 of edges")),
)  # fmt: skip
