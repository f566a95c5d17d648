"""evolve: what each generation sees, and the same end whenever it was stopped."""

from __future__ import annotations

import json
import math

import pytest

from fewstep.searching.evolve import best, evolve


class Paper:
    """A job that keeps its state as JSON text, and stops after so many savings."""

    def __init__(self, text: str | None = None, savings: int = 10**9):
        self.seed, self.state, self.left, self.text = 5, None if text is None else json.loads(text), savings, text

    def save(self, state) -> None:
        self.state, self.text = state, json.dumps(state)
        self.left -= 1
        if self.left == 0:
            raise InterruptedError


def search(job) -> tuple[list, list]:
    kept: list = []

    def first(rng):
        return [[int(rng.integers(100))] for _ in range(6)]

    def breed(rated, rng, generation):
        assert len(rated) == 6 + 4 * (generation - 1)  # all of the generations before, nothing of its own
        return [[genome[0] + int(rng.integers(-3, 4))] for genome, _ in best(rated, 4)]

    def rate(genome):
        return math.inf if genome[0] % 7 == 0 else abs(genome[0] - 50.0)

    return evolve(job, "numbers", first, breed, rate, kept.append, 3), kept


def test_every_better_one_is_kept_and_elites_only_improve():
    rated, kept = search(Paper())
    assert len(rated) == 6 + 3 * 4
    values = [value for _, value in rated]
    lowest = [v for i, v in enumerate(values) if v < min(values[:i], default=math.inf)]
    assert [abs(genome[0] - 50.0) for genome in kept] == lowest


@pytest.mark.parametrize("savings", [1, 5, 6, 7, 8, 12, 20])
def test_a_search_that_was_stopped_ends_as_if_it_had_not_been(savings):
    whole, _ = search(Paper())
    stopped = Paper(savings=savings)
    with pytest.raises(InterruptedError):
        search(stopped)
    again, _ = search(Paper(stopped.text))
    assert again == whole


def test_other_parts_of_the_state_stay():
    job = Paper('{"other": 3}')
    search(job)
    assert job.state["other"] == 3
