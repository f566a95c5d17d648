from __future__ import annotations

from fewstep.core.words import number_of


def test_one_is_singular():
    assert [number_of(n, "step") for n in (0, 1, 2, 2.5)] == ["0 steps", "1 step", "2 steps", "2.5 steps"]
