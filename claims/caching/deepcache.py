"""Claims of kept deep features: how near a run with them stays to the whole model's, for the operations it takes."""

from __future__ import annotations

import functools
import time

import torch

from claims.caches import ASKED, UNIT, fewer, model_of, run, steps_of, whole, words
from claims.common import Outcome, compared, experiment, gap, plan, slow
from claims.parts import EDM, Denoiser, Noise
from claims.trained import NetworkDenoiser
from claims.trained import fresh as made_network
from fewstep.caching.deepcache import deepcache
from fewstep.core.sampler import Result
from fewstep.networks.unet import UNet

N, SHORT, LONG = 64, 12, 50
SIZE, BATCHES = 32, (1, 16)  # of the pictures, and of the batches, whose seconds are measured


@functools.cache
def _cached(name: str, steps: int, interval: int, order: int, seed: int) -> Result:
    return run(deepcache(model_of(name), interval, order=order), name, steps_of(name, "ddim", steps), seed, N)


@experiment
def _nearer(seed: int, name: str, interval: int, order: int, steps: int, share: float = 1.0) -> Outcome:
    """Against the whole model in fewer steps, as many as take no fewer operations; `share` of that is to be reached."""
    found = _cached(name, steps, interval, order, seed)
    reference = whole(name, "ddim", steps, seed, N)
    count, rival = fewer(name, "ddim", found.report["cost"], seed, N)
    figures = [gap(found.samples, reference), share * gap(rival, reference)]
    about = f"{words(name, N)}, {steps} steps of ddim, level 1 kept, whole every {interval}, order {order}:"
    about += f" {found.report['cost']:.1f} whole evaluations"
    of = "" if share == 1 else f"{share:.2g} of the deviation of "
    return compared(figures, f"{of}{count} whole evaluations", about, unit=UNIT)


@experiment
def _cheaper(seed: int, interval: int) -> Outcome:
    cost = _cached("digits", SHORT, interval, 1, seed).report["cost"]
    about = f"digits, {SHORT} steps of ddim, level 1 kept, whole every {interval}"
    return compared([cost, SHORT], "the whole model", about, unit="whole evaluations, by operations")


@functools.cache
def _seconds(seed: int, batch: int) -> tuple[float, float]:
    """Of a run of 50 steps, whole and cached, in turn; the operations' ratio is in the outcome's words."""
    network = made_network(UNet, seed, channels=3, size=SIZE, width=(32, 64, 96), attention=(8,), classes=None)
    model: Denoiser = NetworkDenoiser(network.eval(), EDM(), "x0", (3, SIZE, SIZE), precondition="edm")
    cached, made = deepcache(model, 3, order=2), plan(EDM(), "ddim", LONG)
    noise = Noise(seed).normal(0, (batch, 3, SIZE, SIZE))
    took: dict[str, float] = {"whole": float("inf"), "cached": float("inf")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(3):
            for name, one in (("whole", model), ("cached", cached)):
                begin = time.process_time()
                result = made.run(one, noise)
                took[name] = min(took[name], time.process_time() - begin)
    finally:
        torch.set_num_threads(threads)
    return took["whole"] / took["cached"], LONG / result.report["cost"]


@experiment
def _faster(seed: int, batch: int) -> Outcome:
    faster, predicted = _seconds(seed, batch)
    about = f"UNet of {SIZE}x{SIZE} and three levels, batch {batch}, {LONG} steps of ddim, level 1 kept, whole every 3,"
    about += f" order 2; {predicted:.2f} by operations"
    return compared([faster, 1.5], "at least 1.5 times", about, "high", "times as fast, processor time of one thread")


@experiment
def _predicted(seed: int, batch: int) -> Outcome:
    faster, predicted = _seconds(seed, batch)
    about = (
        f"UNet of {SIZE}x{SIZE}, batch {batch}, {LONG} steps, level 1 kept, whole every 3: {faster:.2f} times as fast,"
    )
    about += f" {predicted:.2f} by operations"
    return compared([abs(faster / predicted - 1), 0.15], "at most 15 % apart", about, unit="relative difference")


@experiment
def _idle(seed: int, size: int, limit: float) -> Outcome:
    """What a cache that leaves nothing out costs: the least processor time of runs of 12 steps, in turn."""
    model: Denoiser = model_of("digits")
    if size != 8:
        network = made_network(UNet, seed, channels=3, size=size, width=(32, 64, 96), attention=(8,), classes=None)
        model = NetworkDenoiser(network.eval(), EDM(), "x0", (3, size, size), precondition="edm")
    made, noise = plan(model.process, "ddim", SHORT), Noise(seed).normal(0, (1, *(model.shape or ())))
    arms, least = (model, deepcache(model, 1)), [float("inf")] * 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(40 if size == 8 else 8):
            for i, one in enumerate(arms):
                begin = time.process_time()
                made(one, noise)
                least[i] = min(least[i], time.process_time() - begin)
    finally:
        torch.set_num_threads(threads)
    about = f"UNet of {size}x{size}, batch 1, {SHORT} steps of ddim, whole at every evaluation"
    return compared([least[1] / least[0] - 1, limit], f"at most {limit:.0%}", about, unit="more processor time")


CLAIMS = (
    *(slow("deepcache", f"lands nearer to the whole model's samples than fewer steps of equal cost, every {every}",
           _nearer("digits", every, 1, SHORT))
      for every in (2, 3)),
    slow("deepcache", "takes fewer operations than the whole model at equal evaluations", _cheaper(3)),
    *(slow("deepcache", f"reuse of {name} in 50 steps is nearer than fewer steps of equal cost",
           _nearer(name, 2, 1, LONG))
      for name in ("digits", "shapes")),
    *(slow("deepcache", f"forecasts of order 3 on {name} are three times as near as fewer steps of equal cost",
           _nearer(name, 2, 3, LONG, 1 / 3))
      for name in ("digits", "shapes")),
    slow("deepcache", "forecasts of order 3 on captioned scenes are three times as near as fewer steps of equal cost",
         _nearer(ASKED, 2, 3, LONG, 1 / 3)),
    *(slow("deepcache", f"it is 1.5 times as fast in batches of {batch}", _faster(batch)) for batch in BATCHES),
    *(slow("deepcache", f"and as fast as operations say in batches of {batch}", _predicted(batch))
      for batch in BATCHES),
    *(slow("deepcache", f"costs nothing where it leaves nothing out, {size}x{size}", _idle(size, limit))
      for size, limit in ((8, 0.03), (SIZE, 0.01))),
)  # fmt: skip
