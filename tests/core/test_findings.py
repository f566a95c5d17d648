"""A finding is said with its bound."""

from __future__ import annotations

from fewstep.core.findings import Finding, below


def test_at_its_bound_it_passes():
    assert below("error", 0.5, 0.5) == Finding("error", 0.5, 0.5, True)
    assert str(below("error", 0.5, 0.5)) == "ok     error: 0.5 (bound 0.5)"
    assert str(below("error", 0.51, 0.5)) == "FAILS  error: 0.51 (bound 0.5)" and not below("error", float("nan"), 1).ok
