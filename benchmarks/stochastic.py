"""What noise costs: the loops of stochastic plans beside those of their deterministic twins, and beside diffusers'.

The network is null, as in `benchmarks.overhead`; float32, one thread, 20 steps. The least of many interleaved rounds is
taken, since other work on the machine only ever adds to a time. "randn" is the loop written by hand with one call of
`torch.randn_like` a step, the least that a library can do which draws with torch's own generator.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.overhead import SHAPES, STEPS, Null, floor
from fewstep.processes.discrete import Discrete
from fewstep.sampling.build import plan

TWINS = {"ddpm": "ddim", "dpmpp-2m-sde": "dpmpp-2m"}
ROUNDS = 60


def _diffusers(name: str, shape: tuple[int, ...], **options: Any) -> Callable[[], Tensor]:
    import diffusers

    made = getattr(diffusers, name)(**options)
    noise, out = torch.randn(shape), torch.randn(shape) * 0.1

    @torch.no_grad()
    def loop() -> Tensor:
        made.set_timesteps(STEPS)
        x = noise
        for t in made.timesteps:
            made.scale_model_input(x, t)
            x = made.step(out, t, x, return_dict=False)[0]
        return x

    return loop


def _cases(shape: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    process, noise = Discrete.linear(), torch.randn(shape)
    cases: dict[str, Callable[[], Any]] = {
        "by hand": floor(shape),
        "by hand, randn": floor(shape, noise=True),
    }
    for name in dict.fromkeys([*TWINS.values(), *TWINS]):
        made, model = plan(process, name, steps=STEPS), Null(process, torch.randn(shape) * 0.1, "eps")
        cases[name] = lambda made=made, model=model, noise=noise: made(model, noise)  # type: ignore[misc]
    cases["diffusers DDPM"] = _diffusers("DDPMScheduler", shape)
    cases["diffusers SDE-DPM++ 2M"] = _diffusers("DPMSolverMultistepScheduler", shape, algorithm_type="sde-dpmsolver++")
    cases["diffusers Euler ancestral"] = _diffusers("EulerAncestralDiscreteScheduler", shape)
    return cases


def measure() -> list[dict[str, Any]]:
    """One row a loop and shape: the least microseconds a step, over its twin's and over the floor's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        for label, shape in SHAPES.items():
            cases = _cases(shape)
            least = dict.fromkeys(cases, float("inf"))
            for _ in range(ROUNDS):
                for name, loop in cases.items():
                    loop()  # what the one before has left in the caches is not this one's
                    begin = time.thread_time()  # without what the thread waits for a core
                    loop()
                    least[name] = min(least[name], (time.thread_time() - begin) / STEPS)
            for name, each in least.items():
                row = {"shape": label, "loop": name, "us": each * 1e6, "times_floor": each / least["by hand"]}
                row["times_twin"] = each / least[TWINS[name]] if name in TWINS else None
                rows.append(row)
    finally:
        torch.set_num_threads(threads)
    return rows
