"""The share of a product that the default suite runs."""

from __future__ import annotations

import pytest
from sampled import sampled, shares

NAMES = [f"method-{i}" for i in range(17)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 17])
def test_every_method_and_every_value_of_every_axis_occurs(count):
    lengths = (2, 5, 5, 1, 7)
    found = shares(NAMES[:count], *lengths)
    for axis, length in enumerate((count, *lengths)):
        assert {row[axis] for row in found} == set(range(length))
    assert len(found) == count * -(-7 // count)  # one case a method, or as many as the longest axis needs
    if count == 17:  # axes of one length do not go hand in hand
        assert len({row[2:4] for row in found}) > 10


def test_the_share_follows_from_the_names_in_any_order():
    def by_name(names):
        return {(names[i], *rest) for i, *rest in shares(names, 2, 5)}

    assert by_name(NAMES) == by_name(NAMES[::-1])
    assert len({rest for _, *rest in map(tuple, by_name(NAMES)) for rest in [tuple(rest)]}) > 5


def test_what_is_left_out_is_slow_and_nothing_is_lost():
    mark = sampled("name, number, end", NAMES, [1, 2, 3], ["a", "b"]).mark
    arguments, rows = mark.args
    assert arguments == "name, number, end" and len({row.id for row in rows}) == len(rows) == 17 * 6
    assert {row.values for row in rows} == {
        (name, number, end) for name in NAMES for number in (1, 2, 3) for end in "ab"
    }
    default = [row for row in rows if not row.marks]
    assert [row.values[0] for row in default] == NAMES
    assert all([mark.name for mark in row.marks] == ["slow"] for row in rows if row not in default)
    assert sampled("name, number", [], [1, 2]).mark.args[1] == []
