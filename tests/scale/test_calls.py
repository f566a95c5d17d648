"""Seconds of calls: the table, how it is measured, and what patch workers make of it."""

from __future__ import annotations

import itertools

import pytest
from scale.together import together
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.core.prediction import Prediction
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.scale.calls import Calls, Link, PatchCalls, line, measure_calls, measure_link
from fewstep.scale.strips import Strips

TABLE = Calls((1, 2, 4), (0.5, 0.6, 1.0))


class Slow(Denoiser):
    """Two milliseconds a call and one a row, by a clock of its own."""

    process, shape = VP(), (2,)

    def __init__(self) -> None:
        super().__init__()
        self.now, self.rows = 0.0, list[int]()

    def forward(self, x: Tensor, t: Tensor, **condition) -> Prediction:
        self.now += 0.002 + 0.001 * len(x)
        self.rows.append(len(x))
        return Prediction(x, "x0", x, t, self.process)


def test_the_table_is_a_line_between_its_rows_and_goes_on():
    assert [TABLE(rows) for rows in (1, 1.5, 2, 3, 4, 6)] == pytest.approx([0.5, 0.55, 0.6, 0.8, 1.0, 1.4])
    assert TABLE(0.25) == pytest.approx(0.425)
    assert Calls((1, 2), (0.1, 0.9))(0.2) == pytest.approx(0.02)  # its share, where the line is below 0


def test_measured_seconds_are_those_of_a_shared_call():
    model = Slow()
    made = plan(model.process, "ddim", 5)
    found = measure_calls(model, (4, 1, 2), repeats=3, sampler=made, clock=lambda: model.now)
    assert found.rows == (1, 2, 4)
    assert found.seconds == pytest.approx([0.003, 0.004, 0.006])
    assert len(model.rows) == 4 * 3 * 5 and set(model.rows) == {1, 2, 4}


def test_a_line_through_messages():
    found = line((10, 1000, 5000), [2e-3 + size / 1e6 for size in (10, 1000, 5000)])
    assert found.latency == pytest.approx(2e-3) and found.bandwidth == pytest.approx(1e6)
    assert found(3000, 4) == pytest.approx(8e-3 + 3e-3)


def test_a_link_is_measured_between_two():
    found = together(lambda group: measure_link(group, (2**8, 2**12), 3), 2)
    assert all(link.latency >= 0 and 0 < link.bandwidth < float("inf") for link in found)
    assert "between two workers, got a group of 1" in str(together(measure_link, 1)[0])


def test_patch_workers_by_hand():
    strips, free = Strips(7, 3, 3), Link(0.0, 1e300)
    shared = PatchCalls(TABLE, strips, free, width=8, depth=2, output=50)
    assert shared(4) == pytest.approx(TABLE(4 * 3 / 7))  # the largest strip has three rows of seven
    assert shared.computing(4) == shared(4)
    assert PatchCalls(TABLE, Strips(7, 3, 1), Link(9.0, 1.0), 8, 2, 50)(3) == TABLE(3)
    link = Link(1e-3, 1e6)
    for border in (0, 1, None):
        found = PatchCalls(TABLE, strips, link, 8, 2, 50, border, 2)(4)
        sent = max(strips.bytes(border, 8, 2, 4, 2, worker) for worker in range(3))
        peers = {0: 0, 1: 2, None: 2}[border]  # the middle worker has two neighbours
        gather = 2 * 1e-3 + 4 * (3 / 7) * 50 * 2 * 2 / 1e6
        keys = 2 * peers * 1e-3 + sent / 1e6
        assert found == pytest.approx(max(TABLE(4 * 3 / 7), keys) + gather)
    slow = PatchCalls(TABLE, strips, Link(0.0, 1e3), 8, 2, 50)
    whole = max(strips.bytes(None, 8, 2, 1, 4, worker) for worker in range(3))
    assert slow(1) == pytest.approx(whole / 1e3 + (3 / 7) * 50 * 4 * 2 / 1e3)  # the messages take longer


def test_more_workers_are_faster_while_messages_are():
    found = [PatchCalls(TABLE, Strips(16, 16, n), Link(1e-6, 1e10), 64, 4, 64)(8) for n in (1, 2, 4, 8)]
    assert all(a > b for a, b in itertools.pairwise(found))


def test_bad_input():
    for rows, seconds in (((1,), (0.1,)), ((1, 2), (0.1,)), ((2, 1), (0.1, 0.2)), ((0, 1), (0.1, 0.2))):
        with pytest.raises(ValueError, match="rows"):
            Calls(rows, seconds)
    with pytest.raises(ValueError, match="seconds must be above 0"):
        Calls((1, 2), (0.1, 0.0))
    with pytest.raises(ValueError, match="latency must be at least 0 seconds"):
        Link(-1.0, 1.0)
    for rows, repeats, name in (((0, 1), 3, "rows"), ((), 3, "rows"), ((1, 2), 0, "repeats")):
        with pytest.raises(ValueError, match=f"{name} must be whole numbers"):
            measure_calls(Slow(), rows, repeats)
