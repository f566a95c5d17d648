"""engine: whoever asks joins at the next call; what is promised under load."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future

import pytest
import torch
from serving.gated import Gate, Gated

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.mixed import Request
from fewstep.serving.counters import Counters
from fewstep.serving.engine import Closed, Engine, Full, Job, Late, units


def request(steps: int = 3, rows: int = 1, label: int = 0, seed: int = 0) -> Request:
    noise = Noise(seed).normal(0, (rows, 2))
    return Request(plan(VP(), "ddim", steps), noise, {"label": label}, seed=seed)


def alone(one: Request) -> torch.Tensor:
    return one.plan(Gated(), one.noise, seed=one.seed, **one.condition)


def test_requests_join_between_calls_and_leave_when_done():
    gate = Gate()
    with Engine(Gated(gate), max_batch=4) as engine:
        long = Job([request(6, label=1, seed=1)])
        one = engine.submit(long)
        gate.let(2)
        for _ in range(3):
            assert gate.reached.acquire(timeout=30)  # in its third call
        short = Job([request(2, label=2, seed=2)])
        two = engine.submit(short)
        gate.let(100)
        assert torch.equal(two.result(30), alone(short.requests[0]))
        assert torch.equal(one.result(30), alone(long.requests[0]))
        labels = engine.model.labels
    assert labels == [[1]] * 3 + [[1, 2]] * 2 + [[1]]
    assert engine.counters.evaluations - engine.counters.calls == 2  # the shared ones
    assert engine.counters.samples == 2 and engine.counters.requests == {"done": 2}


def test_many_samples_of_one_request_leave_room_for_another():
    gate = Gate()
    with Engine(Gated(gate), max_batch=4) as engine:
        order: list[str] = []
        many = engine.submit(
            Job([request(4, label=1, seed=k) for k in range(12)], finish=lambda x: order.append("many"))
        )
        assert gate.reached.acquire(timeout=30)
        few = engine.submit(Job([request(2, label=2, seed=99)], finish=lambda _: order.append("few")))
        gate.let(100)
        few.result(30)
        many.result(30)
        assert order == ["few", "many"]
    # It gets the first place that is free, before the eight that came earlier.
    first = next(k for k, labels in enumerate(engine.model.labels) if 2 in labels)
    assert first == 4


def test_a_full_queue_is_refused_at_once():
    gate = Gate()
    counters = Counters()
    with Engine(Gated(gate), max_batch=2, queue=4, counters=counters) as engine:
        two = [engine.submit(Job([request(), request()])) for _ in range(2)]
        with pytest.raises(Full, match="4 samples wait") as error:
            engine.submit(Job([request()]))
        assert error.value.seconds >= 1
        gate.let(100)
        for result in two:
            result.result(30)
    assert counters.requests == {"full": 1, "done": 2}


def test_a_request_larger_than_a_call_is_refused():
    with Engine(Gated(), max_batch=2) as engine, pytest.raises(ValueError, match="3 samples does not fit"):
        engine.submit(Job([request(rows=3)]))


def test_who_goes_away_frees_its_rows_at_the_next_call():
    gate = Gate()
    with Engine(Gated(gate), max_batch=1) as engine:
        gone, waits = Job([request(50, label=1)]), Job([request(1, label=2)])
        lost = engine.submit(gone)
        kept = engine.submit(waits)
        assert gate.reached.acquire(timeout=30)
        engine.cancel(gone)
        gate.let(100)
        assert torch.equal(kept.result(30), alone(waits.requests[0]))
        with pytest.raises(CancelledError):
            lost.result(30)
    assert engine.model.labels == [[1], [2]]
    assert engine.counters.requests == {"cancelled": 1, "done": 1}


def test_a_deadline_that_has_passed():
    with Engine(Gated(), max_batch=1) as engine:
        with pytest.raises(Late, match="deadline of 0 s passed"):
            engine.submit(Job([request(5)], deadline=0.0)).result(30)
        assert len(engine.submit(Job([request(5)], deadline=1000)).result(30)) == 1
    assert engine.counters.requests == {"late": 1, "done": 1}


def test_what_the_network_breaks_fails_alone():
    with Engine(Gated(), max_batch=8) as engine:
        good, nan, bad = (Job([request(label=label)]) for label in (1, 3, 4))
        results = [engine.submit(job) for job in (good, nan, bad)]
        assert torch.equal(results[0].result(30), alone(good.requests[0]))
        with pytest.raises(ValueError, match="not finite"):
            results[1].result(30)
        with pytest.raises(RuntimeError, match="no fours"):
            results[2].result(30)
    assert engine.counters.requests == {"done": 1, "failed": 2}


def test_closing_finishes_what_runs_and_refuses_the_rest():
    gate = Gate()
    engine = Engine(Gated(gate), max_batch=1)
    first = engine.submit(Job([request(2)]))
    gate.let(100)
    assert engine.close(grace=30) and first.done()
    with pytest.raises(Closed, match="shutting down"):
        engine.submit(Job([request()]))

    gate = Gate()
    engine = Engine(Gated(gate), max_batch=1)
    running = engine.submit(Job([request(200)]))
    assert gate.reached.acquire(timeout=30)
    gate.let(1000)
    engine.close(grace=0)
    assert running.done()


def test_the_finishing_touch_and_its_errors():
    with Engine(Gated()) as engine:
        assert engine.submit(Job([request()], finish=lambda samples: samples.shape)).result(30) == (1, 2)

        def breaks(samples):
            raise OSError("no disk")

        with pytest.raises(OSError, match="no disk"):
            engine.submit(Job([request()], finish=breaks)).result(30)


def test_a_model_that_comes_later():
    class Other(Gated):
        def forward(self, x, t, label):
            return super().forward(x, t, label * 0 + 1)

    made: Future[Denoiser] = Future()
    other = Other()
    with Engine(Gated(), max_batch=4) as engine:
        job = Job([request(5, seed=1)], changes=(made, 2))
        result = engine.submit(job)
        assert torch.equal(engine.submit(Job([request(9)])).result(30), alone(request(9)))  # nobody else waits
        made.set_result(other)
        mixed = result.result(30)
    assert len(other.labels) == 3 and not torch.equal(mixed, alone(request(5, seed=1)))

    lost: Future[Denoiser] = Future()
    with Engine(Gated(), max_batch=4) as engine:
        result = engine.submit(Job([request(5)], changes=(lost, 2)))
        lost.set_exception(ValueError("no such adapter"))
        with pytest.raises(ValueError, match="no such adapter"):
            result.result(30)


def test_units_leave_room_for_others():
    assert (
        units(10, 16) == [(0, 4), (4, 8), (8, 10)]
        and units(1, 1) == [(0, 1)]
        and units(3, 2) == [(0, 1), (1, 2), (2, 3)]
    )
