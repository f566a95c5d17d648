"""Time of the sampling loop beyond the network, beside a hand-written loop in the same run.

A null network returns a tensor made beforehand, so all that is left is the loop: look-ups, combinations, bookkeeping.
Latents 4x64x64, batch 1 and 16, float32, one thread, 20 steps. The floor is DPM-Solver++ 2M written by hand with its
coefficients as Python floats: three in-place operations a step and nothing else. Rounds are interleaved, so that a
noisy moment hits all alike; medians and minima over the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.core.process import Process
from fewstep.processes.discrete import Discrete
from fewstep.sampling.build import plan

SOLVERS = ("ddim", "dpmpp-2m", "dpmpp-3m", "deis-3", "ab-3", "ab-4", "lms-4", "vab-3", "plms")
SOLVERS += ("unipc-2", "unipc-3", "unipc-4", "dpmpp-2s", "heun", "ddpm", "dpmpp-2m-sde")
SHAPES = {"1x4x64x64": (1, 4, 64, 64), "16x4x64x64": (16, 4, 64, 64)}
STEPS, ROUNDS = 20, 30


class Null(Denoiser):
    """A denoiser of a kind that answers at once."""

    def __init__(self, process: Process, out: Tensor, kind: str):
        super().__init__()
        self.process, self.out, self.kind = process, out, kind

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        return Prediction(self.out, self.kind, x, t, self.process)


def floor(shape: tuple[int, ...], noise: bool = False) -> Callable[[], Any]:
    """The loop by hand; with noise of torch's own generator, added at every step."""
    begin, out = torch.randn(shape), torch.randn(shape) * 0.1
    coefficients = [(0.9, 0.1, -0.02)] * STEPS

    def network(x: Tensor) -> Tensor:
        return out

    @torch.no_grad()
    def loop() -> Tensor:
        x, old = begin.clone(), None
        for a, b, c in coefficients:
            new = network(x)
            x.mul_(a).add_(new, alpha=b)
            if old is not None:
                x.add_(old, alpha=c)
            if noise:
                x.add_(torch.randn_like(x), alpha=0.1)
            old = new
        return x

    return loop


def measure() -> list[dict[str, Any]]:
    """One row a solver and shape: microseconds an evaluation (median, best), and the ratio to the floor's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    process = Discrete.linear()
    rows = []
    try:
        for label, shape in SHAPES.items():
            live: list[tuple[str, int, Callable[[], Any], list[float]]] = []
            live.append(("hand-written 2M", STEPS, floor(shape), []))
            for name in SOLVERS:
                made = plan(process, name, steps=STEPS)
                model, noise = Null(process, torch.randn(shape) * 0.1, "eps"), torch.randn(shape)
                live.append((name, made.nfe, lambda p=made, m=model, z=noise: p(m, z), []))  # type: ignore[misc]
            for _, _, loop, _ in live:
                loop()
            for _ in range(ROUNDS):
                for _, _, loop, times in live:
                    if sum(times) > 2.0:  # a slow case would only make the others wait
                        continue
                    begin = time.perf_counter()
                    loop()
                    times.append(time.perf_counter() - begin)
            by_hand = statistics.median(live[0][3]) / STEPS
            for name, calls, _, times in live:
                each = statistics.median(times) / calls
                rows.append(
                    {
                        "shape": label,
                        "solver": name,
                        "evaluations": calls,
                        "us_per_evaluation": each * 1e6,
                        "best_us_per_evaluation": min(times) / calls * 1e6,
                        "times_floor": each / by_hand,
                    }
                )
    finally:
        torch.set_num_threads(threads)
    return rows
