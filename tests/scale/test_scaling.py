"""Ways of serving side by side: throughput against what a table of calls allows, and the picture."""

from __future__ import annotations

import warnings

import pytest

from fewstep.scale.scaling import Way, draw, scaling
from fewstep.scale.simulate import poisson, simulate

STEPS = {4: 0.5, 8: 0.5}


def call(rows: float) -> float:
    return 0.004 + 0.008 * rows


WAYS = (
    Way("one at a time", call, "none"),
    Way("step by step", call),
    Way("two workers a call", lambda rows: call(rows / 2), patches=2),
)


@pytest.fixture(scope="module")
def points():
    return {(point.way, point.workers): point for point in scaling(WAYS, (1, 2, 8), 0.5, STEPS, 8)}


def test_throughput_is_what_full_calls_allow(points):
    for n in (1, 8):
        assert points["one at a time", n].throughput == pytest.approx(n / (6 * call(1)), rel=0.15)
        assert points["step by step", n].throughput == pytest.approx(8 * n / (6 * call(8)), rel=0.2)
    assert points["two workers a call", 8].throughput == pytest.approx(8 * 4 / (6 * call(4)), rel=0.2)
    assert points["step by step", 8].throughput == pytest.approx(8 * points["step by step", 1].throughput, rel=0.1)


def test_the_load_is_that_of_the_first_way(points):
    for n in (1, 2, 8):
        assert points["one at a time", n].utilisation == pytest.approx(0.5, abs=0.05)
        assert points["one at a time", n].batch == 1 < points["step by step", n].batch
    direct = simulate(poisson(0.5 / (6 * call(1)), STEPS, 2000), call, 1, "none", 8)
    assert points["one at a time", 1].p99 == direct.p99


def test_more_workers_wait_less_and_a_divided_call_is_shorter(points):
    assert points["one at a time", 8].p99 < points["one at a time", 1].p99
    assert points["two workers a call", 8].p50 < points["step by step", 8].p50
    assert ("two workers a call", 1) not in points


@pytest.mark.slow
def test_the_picture(points, tmp_path):
    warnings.simplefilter("error")  # a legend without names
    path = draw({"small": list(points.values()), "the same": list(points.values())}, 0.5, tmp_path / "scale.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and [path] == list(tmp_path.iterdir())
    assert set(points["one at a time", 1].as_dict()) >= {"way", "workers", "p50", "p95", "p99", "throughput"}


def test_bad_input():
    with pytest.raises(ValueError, match="at least one way, and a load above 0, got 0 ways"):
        scaling(())
    with pytest.raises(ValueError, match="load above 0, got 3 ways and 0"):
        scaling(WAYS, load=0)
    with pytest.raises(ValueError, match="workers must be whole numbers of at least 1, got 0.5"):
        scaling(WAYS[:1], (0.5,))
