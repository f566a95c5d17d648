"""Sampling a diffusers UNet by fewstep and by diffusers' own loop: time outside the network, and memory of the call.

UNet2DModel of 32x32 pixels, random weights, batch 16, 20 steps of DPM-Solver++ 2M, float32, one thread. Three loops
take turns: `plan(model, noise)`; diffusers' DDIMPipeline with DPMSolverMultistepScheduler, and with the plan as its
scheduler (pictures as tensors, no conversion to PIL). Hooks time the network inside each call; the rest of the call is
what the loop costs. Memory is the growth of the process's peak (VmHWM: Linux) over its first call, the network's own
included, each in a process of its own; medians of several.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.discrete import Discrete
from fewstep.sampling.build import plan

STEPS, BATCH, SIZE = 20, 16, 32
ROUNDS, PROCESSES = 5, 3
LOOPS = ("fewstep", "diffusers", "diffusers with the plan")


class _Call(nn.Module):
    """A diffusers UNet as `network(x, t)`."""

    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.unet(x, t, return_dict=False)[0]


def network() -> Any:
    import diffusers

    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    ).eval()


def loop(name: str, unet: Any) -> Callable[[], Tensor]:
    """One sampling call from fresh noise to samples in [0, 1]."""
    import diffusers

    process = Discrete.linear()
    made = plan(process, "dpmpp-2m", STEPS, "linspace")
    if name == "fewstep":
        model = NetworkDenoiser(_Call(unet), process, "eps", (3, SIZE, SIZE)).eval()
        return lambda: (made(model, torch.randn(BATCH, 3, SIZE, SIZE)) / 2 + 0.5).clamp(0, 1)
    pipe = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
    pipe.scheduler = (
        diffusers.DPMSolverMultistepScheduler(beta_schedule="linear")
        if name == "diffusers"
        else made.as_diffusers_scheduler(like=pipe.scheduler)
    )
    if name == "diffusers":  # this pipeline passes DDIM's own arguments along, which that scheduler does not know
        step = pipe.scheduler.step
        pipe.scheduler.step = lambda output, t, x, eta, use_clipped_model_output, generator: step(
            output, t, x, generator=generator
        )
    pipe.set_progress_bar_config(disable=True)
    return lambda: pipe(BATCH, num_inference_steps=STEPS, output_type="pt").images


def measure(rounds: int = ROUNDS, processes: int = PROCESSES) -> list[dict[str, Any]]:
    """One row a loop: seconds of a call, seconds outside the network, their share in percent, megabytes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        unet, inside, begun = network(), [0.0], [0.0]
        unet.register_forward_pre_hook(lambda *_: begun.__setitem__(0, time.perf_counter()))
        unet.register_forward_hook(lambda *_: inside.__setitem__(0, inside[0] + time.perf_counter() - begun[0]))
        loops = {name: loop(name, unet) for name in LOOPS}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in LOOPS}
        for number in range(rounds + 1):  # the first is to warm up
            for name, call in loops.items():
                inside[0] = 0.0
                begin = time.perf_counter()
                call()
                whole = time.perf_counter() - begin
                if number:
                    times[name].append((whole, whole - inside[0]))
    finally:
        torch.set_num_threads(threads)
    rows = []
    for name, pairs in times.items():
        rows.append(
            {
                "loop": name,
                "evaluations": STEPS,
                "rounds": rounds,
                "seconds": statistics.median(whole for whole, _ in pairs),
                "outside_ms": 1e3 * statistics.median(outside for _, outside in pairs),
                "outside_percent": 100 * statistics.median(outside / whole for whole, outside in pairs),
                "peak_mb": statistics.median(_memory(name) for _ in range(processes)),
            }
        )
    return rows


def _memory(name: str) -> float:
    """Megabytes by which one sampling call raises the peak of a fresh process."""
    # Every tensor from the system and back to it at once, so that the peak is that of what lives, run after run.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    words = [sys.executable, "-m", __name__, name]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    return float(json.loads(done.stdout.splitlines()[-1]))


def _one_call(name: str) -> float:
    torch.set_num_threads(1)
    unet = network()
    call = loop(name, unet)
    before = _peak()
    call()
    return _peak() - before


def _peak() -> float:
    """Megabytes. Not getrusage: what that calls the peak begins with the size of the process that started this one."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(_one_call(sys.argv[1])))
