"""What evolutionary searches share: generations that can be stopped and taken up again, and ranks of what was rated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fewstep.searching.job import Job

Genome = list[Any]  # JSON, so that a file gives it back as it was
Rated = list[tuple[Genome, float]]


def best(rated: Rated, n: int) -> Rated:
    """The n of least value, the earlier first among equals."""
    return sorted(rated, key=lambda pair: pair[1])[:n]


def evolve(
    job: Job,
    key: str,
    first: Callable[[np.random.Generator], list[Genome]],
    breed: Callable[[Rated, np.random.Generator, int], list[Genome]],
    rate: Callable[[Genome], float],
    keep: Callable[[Genome], object],
    generations: int,
) -> Rated:
    """Rate a first population and then so many bred generations; all that was rated, in order.

    `breed` sees what was rated before its generation and a generator of its own, so each generation follows from the
    seed and the ratings. The state, under `key` of the job's, is saved after each rating: a search that was killed
    breeds the same generation again and goes on within it. `keep` is called with each genome that is better than all
    before it.
    """
    state = job.state = dict(job.state or {})  # `keep` may add to it
    stored = state.get(key, {"sizes": [], "rated": []})
    sizes: list[int] = list(stored["sizes"])
    rated: Rated = [(genome, math.inf if value is None else value) for genome, value in stored["rated"]]

    def save() -> None:
        values = [[genome, value if math.isfinite(value) else None] for genome, value in rated]
        state[key] = {"sizes": list(sizes), "rated": values}
        job.save(state)

    for generation in range(len(sizes), generations + 1):
        rng = np.random.default_rng([job.seed, generation, *key.encode()])
        before = rated[: sum(sizes)]
        group = first(rng) if generation == 0 else breed(before, rng, generation)
        for genome in group[len(rated) - len(before) :]:
            value = rate(genome)
            if value < min((value for _, value in rated), default=math.inf):
                keep(genome)
            rated.append((genome, value))
            save()
        sizes.append(len(group))
        save()
    return rated
