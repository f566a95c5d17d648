"""Claims of encoder propagation: a UNet's way up alone between keys, against fewer steps of equal operations."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import torch

from claims.caches import DIFFERENCE, Setting
from claims.common import SLICED, Outcome, Plan, experiment, sliced, slow, thrice, tolerance
from fewstep.caching.common import Cached
from fewstep.caching.encoder_propagation import encoder_propagation

LONG, SHORT = Setting(steps=50), Setting(steps=20)
SPREAD = 256  # noises of a distance between sets
Keys = int | None


@functools.cache
def _arms(on: Setting, keys: Keys, order: int) -> tuple[Cached, float, Plan]:
    """The cache, what a run of it costs, and fewer steps that cost no less."""
    cached = encoder_propagation(on.denoiser, keys, order)
    standing = [cached.recipe.schedule(n, on.steps) for n in range(on.steps)]
    spent = sum(cached.cost(tuple(names)) for names in standing)
    return cached, spent, on.fewer(spent)


def _about(on: Setting, keys: Keys, order: int) -> str:
    spent = _arms(on, keys, order)[1]
    at = "the paper's keys" if keys is None else f"a key every {keys}"
    return f"{at}, order {order}: {spent:.1f} whole evaluations by operations, {on.about}"


@experiment
def _nearer(seed: int, on: Setting, keys: Keys, order: int) -> Outcome:
    cached, _, fewer = _arms(on, keys, order)
    figures = on.deviation(seed, cached), on.deviation(seed, made=fewer)
    return Outcome(*figures, f"{on.solver}, {fewer.nfe} steps", _about(on, keys, order), unit=DIFFERENCE)


@functools.cache
def _distances(on: Setting, keys: Keys, order: int, seed: int) -> Sequence[float]:
    cached, _, fewer = _arms(on, keys, order)
    whole = on.run(seed, n=SPREAD)
    return [sliced(on.run(seed, *arm, n=SPREAD), whole) for arm in ((cached, on.made), (on.denoiser, fewer))]


@experiment
def _same(seed: int, on: Setting) -> Outcome:
    """Batched and one by one."""
    made = [on.run(seed, encoder_propagation(on.denoiser, None, 2, batched)) for batched in (True, False)]
    worst = float((made[0] - made[1]).abs().max())
    return tolerance(worst, 1e-6, f"the paper's keys, order 2, {on.about}")


@experiment
def _seconds(seed: int, on: Setting, n: int, against: str) -> Outcome:
    """The least of several runs each, in turn."""
    batched = encoder_propagation(on.denoiser, None)
    other = on.denoiser if against == "whole" else encoder_propagation(on.denoiser, None, batched=False)
    spent: dict[int, list[float]] = {0: [], 1: []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(7):
        for which, model in enumerate((batched, other)):
            begin = time.process_time()
            on.run(seed, model, n=n)
            spent[which].append(time.process_time() - begin)
    torch.set_num_threads(threads)
    words = "the whole model" if against == "whole" else "decoders one by one"
    about = f"the paper's keys, order 1, {n} samples, the least of 7 runs; {on.solver}, {on.steps} steps"
    return Outcome(min(spent[0]), min(spent[1]), words, f"{about}, embedded digits", unit="seconds of one thread")


@experiment
def _spread(seed: int, on: Setting, keys: Keys, order: int) -> Outcome:
    figures, fewer = _distances(on, keys, order, seed), _arms(on, keys, order)[2]
    about = f"{_about(on, keys, order)}, {SPREAD} in a set"
    return Outcome(*figures, f"{on.solver}, {fewer.nfe} steps", about, unit=SLICED + " from the whole run's samples")


ROWS: list[tuple[Setting, Keys, int]] = [
    (LONG, None, 1), (LONG, 2, 1), (LONG, 2, 2), (LONG, 2, 3), (SHORT, 2, 1), (SHORT, 2, 2),
]  # fmt: skip


def _words(on: Setting, keys: Keys, order: int) -> str:
    at = "the paper's keys" if keys is None else f"a key every {keys}"
    return f"{at}, order {order}, ddim's {on.steps} steps"


CLAIMS = (
    slow("encoder-propagation", "decoders in one batch are those one by one", _same(LONG)),
    *(slow("encoder-propagation", f"deviates less than fewer steps of equal cost: {_words(*row)}",
           thrice(_nearer(*row))) for row in ROWS),
    *(slow("encoder-propagation", f"stays closer to the whole run's samples as a set: {_words(*row)}",
           thrice(_spread(*row))) for row in ROWS),
    *(slow("encoder-propagation", f"takes less time than {what}, {n} samples", _seconds(LONG, n, against))
      for against, what in (("whole", "the whole model"), ("sequential", "decoders one by one")) for n in (1, 64)),
)  # fmt: skip
