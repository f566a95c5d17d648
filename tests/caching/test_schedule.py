"""When parts stand still."""

from __future__ import annotations

import pytest

from fewstep.caching.schedule import every, listed, not_negative, share, whole_number, within


def keys(schedule, count: int) -> list[int]:
    return [number for number in range(count) if schedule(number, count)]


def test_even_and_listed_ones():
    assert keys(every(3), 10) == [0, 3, 6, 9] and keys(every(1), 3) == [0, 1, 2]
    assert keys(listed([2, 5]), 7) == [0, 2, 5]


def test_outside_the_limits_all_are_whole():
    assert keys(within(every(3), 0.2, 0.8), 10) == [0, 1, 3, 6, 8, 9]
    assert within(every(3), 0.0, 1.0)(4, 0) is False
    assert all(within(every(3), 0.2, 0.8)(number, 0) for number in range(9))  # of a run whose length nobody knows


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: whole_number("interval", 0), "interval must be a whole number of at least 1, got 0"),
        (lambda: whole_number("interval", 1.5), "interval must be a whole number"),
        (lambda: whole_number("order", True), "order must be a whole number"),
        (lambda: share("start", 1.2), "start is a fraction of the run, from 0 to 1, got 1.2"),
        (lambda: not_negative("threshold", -1), "threshold must be at least 0 and finite, got -1"),
        (lambda: not_negative("threshold", float("nan")), "threshold must be at least 0 and finite"),
        (lambda: within(every(2), 0.5, 0.5), "start must lie before stop, got 0.5 and 0.5"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
