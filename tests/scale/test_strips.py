"""Strips of tokens: who has, sees and sends which rows, against counting token by token."""

from __future__ import annotations

import itertools

import pytest

from fewstep.scale.strips import Strips


@pytest.mark.parametrize("rows, workers", [(4, 4), (7, 3), (8, 2), (5, 1)])
def test_strips_part_the_rows_evenly_and_in_order(rows, workers):
    strips = Strips(rows, 3, workers)
    own = [list(strips.own(worker)) for worker in range(workers)]
    assert list(itertools.chain(*own)) == list(range(rows))
    assert max(map(len, own)) - min(map(len, own)) <= 1
    assert strips.tokens(strips.own(workers - 1)).stop == 3 * rows


@pytest.mark.parametrize("rows, workers", [(4, 4), (7, 3), (9, 2), (6, 6)])
def test_messages_are_what_each_sees_of_each(rows, workers):
    strips = Strips(rows, 5, workers)
    for border in (*range(strips.widest + 1), None):
        sent = 0
        for worker, other in itertools.product(range(workers), repeat=2):
            mine, theirs = set(strips.own(worker)), set(strips.own(other))
            near = {row for row in range(rows) if border is None or min(abs(row - o) for o in theirs) <= border}
            assert set(strips.seen(other, border)) == near
            expected = mine & near if worker != other else set()
            assert set(strips.message(worker, other, border)) == expected
            sent += len(expected)
        assert strips.sent(border) == sent == sum(strips.sent(border, worker) for worker in range(workers))


def test_the_widest_border_is_all_and_one_less_is_not():
    for rows, workers in ((4, 4), (7, 3), (9, 2)):
        strips = Strips(rows, 2, workers)
        assert strips.sent(strips.widest) == strips.sent(None) == rows * (workers - 1)
        assert strips.sent(strips.widest - 1) < strips.sent(None)


def test_bytes_in_closed_form():
    """Equal strips of at least the border send `2 w (N - 1)` rows of keys and values."""
    rows, columns, workers, width, depth, batch = 12, 7, 4, 96, 5, 3
    strips = Strips(rows, columns, workers)
    for border in range(4):
        expected = 2 * depth * batch * width * columns * 4 * 2 * border * (workers - 1)
        assert strips.bytes(border, width, depth, batch) == expected
    assert strips.bytes(None, width, depth, batch, 2) == 2 * depth * batch * width * columns * 2 * rows * (workers - 1)
    shares = [strips.bytes(1, width, depth, worker=worker) for worker in range(workers)]
    assert sum(shares) == strips.bytes(1, width, depth) and shares[1] == 2 * shares[0] == 2 * shares[3]


def test_bad_numbers():
    for workers in (0, 5, 2.0, True):
        with pytest.raises(ValueError, match="workers must be a whole number from 1 to 4, .* 4x3 tokens, got"):
            Strips(4, 3, workers)  # type: ignore[arg-type]
    strips = Strips(4, 3, 2)
    for border in (-1, 3, 0.5, True):
        with pytest.raises(ValueError, match="border must be a whole number from 0 to 2"):
            strips.check(border)  # type: ignore[arg-type]
    strips.check(None), strips.check(2)
