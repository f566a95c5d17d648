"""Claims of caches for transformers: how near a run with them stays to the whole model's, for the operations it takes.

All are measured alike: 64 noises of the embedded transformer of digits, classes in turn, 50 steps of ddim, against the
whole model in as many steps as take no fewer operations.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from claims.caches import UNIT, fewer, fresh, model_of, run, steps_of, whole, words
from claims.common import Outcome, compared, experiment, gap, plan, slow, thrice
from claims.parts import EDM, Denoiser, Noise
from claims.trained import NetworkDenoiser
from claims.trained import fresh as made_network
from fewstep.caching import magcache, teacache
from fewstep.caching.faster_cache import faster_cache
from fewstep.caching.first_block import dbcache, first_block
from fewstep.caching.pab import pab
from fewstep.caching.taylorseer import taylorseer
from fewstep.networks.dit import DiT

NAME, GUIDED, SOLVER, N, STEPS = "digits-dit", "digits-dit guided", "ddim", 64, 50
FITTED, AWAY = 16, 1000  # noises that a method is calibrated on, and how far their seeds are from the fresh ones
SIZE, DEPTH, WIDTH = 32, 12, 128  # of the network whose seconds are measured
Cache = Callable[[Denoiser, int], Denoiser]


@functools.cache
def _ratios(seed: int) -> dict[str, Any]:
    labels = torch.arange(FITTED) % 10
    noises = fresh(NAME, seed + AWAY, FITTED)
    return magcache.calibrate(model_of(NAME), steps_of(NAME, SOLVER, STEPS), noises, label=labels)


@functools.cache
def _polynomial(seed: int) -> dict[str, Any]:
    labels = torch.arange(FITTED) % 10
    noises = fresh(NAME, seed + AWAY, FITTED)
    return teacache.calibrate(model_of(NAME), steps_of(NAME, SOLVER, STEPS), noises, label=labels)


@experiment
def _nearer(seed: int, cache: Cache, what: str) -> Outcome:
    found = run(cache(model_of(NAME), seed), NAME, steps_of(NAME, SOLVER, STEPS), seed, N)
    cost = found.report["cost"]
    return _outcome(NAME, found.samples, cost, what, seed)


def _outcome(name: str, samples: Tensor, cost: float, what: str, seed: int) -> Outcome:
    count, rival = fewer(name, SOLVER, cost, seed, N)
    reference = whole(name, SOLVER, STEPS, seed, N)
    about = f"{words(name, N)}, {STEPS} steps of {SOLVER}, {what}: {cost:.1f} whole evaluations"
    return compared([gap(samples, reference), gap(rival, reference)], f"{count} whole evaluations", about, unit=UNIT)


def _operations(model: Denoiser) -> int:
    """Of a run of one guided sample, which has two rows at an evaluation, or one."""

    def attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
        return sdpa_flop_count(query, key, value)

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # the counter leaves this one out
    with FlopCounterMode(display=False, custom_mapping={on_cpu: attention}) as counter:
        run(model, GUIDED, steps_of(GUIDED, SOLVER, STEPS), 0, 1)
    return counter.get_total_flops()


@experiment
def _guided(seed: int, interval: int, guidance: int, what: str) -> Outcome:
    cached = faster_cache(model_of(GUIDED), interval, guidance)
    found = run(cached, GUIDED, steps_of(GUIDED, SOLVER, STEPS), seed, N)
    _operations(cached)  # once for the operations of its evaluations, which it counts by running them
    cost = STEPS * _operations(cached) / _operations(model_of(GUIDED))
    return _outcome(GUIDED, found.samples, cost, f"{what}, {found.report['rows']} rows a sample", seed)


@experiment
def _faster(seed: int, batch: int) -> Outcome:
    """A run of 50 steps, whole and with every second evaluation reusing, in turn: the least seconds of three."""
    network = made_network(DiT, seed, channels=3, size=SIZE, width=WIDTH, depth=DEPTH, classes=None)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # what starts at zero says nothing
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model: Denoiser = NetworkDenoiser(network.eval(), EDM(), "x0", (3, SIZE, SIZE), precondition="edm")
    cached, made = first_block(model, threshold=1e9, most=1), plan(EDM(), SOLVER, STEPS)
    noise, took = Noise(seed).normal(0, (batch, 3, SIZE, SIZE)), {"whole": math.inf, "cached": math.inf}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(3):
            for name, one in (("whole", model), ("cached", cached)):
                begin = time.perf_counter()
                report = made.run(one, noise).report
                took[name] = min(took[name], time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    about = f"DiT of {SIZE}x{SIZE}, {DEPTH} blocks of width {WIDTH}, random weights, batch {batch}, {STEPS} steps of"
    about += f" {SOLVER}, {report['part']} of them reuse; {STEPS / report['cost']:.2f} by operations"
    faster = took["whole"] / took["cached"]
    return compared([faster, 1.6], "at least 1.6 times", about, "high", "times as fast, one thread of a processor")


NEAR = "lands nearer to the whole model's samples than fewer steps of equal cost"
CLAIMS = (
    *(slow("taylorseer", f"with forecasts of order {order}, {NEAR}",
           _nearer(lambda model, seed, order=order: taylorseer(model, 3, order), f"whole every 3, order {order}"))
      for order in (1, 2, 3)),
    *(slow("pab", f"with forecasts of order {order}, {NEAR}",
           _nearer(lambda model, seed, order=order: pab(model, 2, order=order), f"attention every 2, order {order}"))
      for order in (1, 2, 3)),
    *(slow("magcache", f"with forecasts of order {order}, {NEAR}",
           thrice(_nearer(lambda model, seed, order=order: magcache.magcache(model, **_ratios(seed), order=order),
                          f"ratios of {FITTED} other noises, threshold 0.06, order {order}")))
      for order in (1, 2, 3)),
    slow("teacache", NEAR,
         thrice(_nearer(lambda model, seed: teacache.teacache(model, 0.15, **_polynomial(seed)),
                        f"polynomial of {FITTED} other noises, threshold 0.15"))),
    slow("teacache", f"without a polynomial, {NEAR}",
         _nearer(lambda model, seed: teacache.teacache(model, 0.15), "changes as they are, threshold 0.15")),
    slow("first-block", NEAR, _nearer(lambda model, seed: first_block(model), "threshold 0.08")),
    slow("first-block", f"judging by two blocks, with one at the end, {NEAR}",
         _nearer(lambda model, seed: first_block(model, 2, 1), "front 2, back 1, threshold 0.08")),
    slow("dbcache", NEAR, _nearer(lambda model, seed: dbcache(model), "front 1 of 9, threshold 0.08, warmup 8")),
    slow("faster-cache", NEAR, _nearer(lambda model, seed: faster_cache(model), "attention every 2")),
    slow("faster-cache", f"under guidance, {NEAR}",
         _guided(2, 5, "attention every 2, empty answers every 5")),
    slow("faster-cache", f"under guidance, by empty answers alone, {NEAR}", _guided(1, 5, "empty answers every 5")),
    *(slow("first-block", f"at half reuse it is 1.6 times as fast in batches of {batch}", _faster(batch))
      for batch in (1, 8)),
)  # fmt: skip
