"""Calls whose rows are shared out: the same answers, in order; errors and lost processes."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from serving.gated import Gated

import fewstep as fs
from fewstep.caching.deepcache import deepcache
from fewstep.core.noise import Noise
from fewstep.serving.halves import Halves, Process, spread


class Here:
    """A worker that is no other place."""

    def __init__(self, model):
        self.model, self.seen = model, []

    def ask(self, x, t, condition):
        self.seen.append(len(x))
        return x, t, condition

    def answer(self, asked, x, t):
        return self.model(asked[0], asked[1], **asked[2])


def call(model, rows: int, label: int = 1):
    x, t = Noise(0).normal(0, (rows, 2)), torch.linspace(0.1, 0.9, rows)
    return model(x, t, label=torch.full((rows,), label))


def test_rows_are_shared_out_in_order():
    base, workers = Gated(), [Here(Gated()), Here(Gated())]
    halves = Halves(base, workers)
    for rows in (1, 2, 3, 7, 12):
        answer, expected = call(halves, rows), call(Gated(), rows)
        assert torch.equal(answer.value, expected.value) and torch.equal(answer.x0, expected.x0)
    assert [w.seen for w in workers] == [[1, 2, 4], [1, 3, 4]] and base.labels[-1] == [1] * 4
    one_time = halves(Noise(0).normal(0, (6, 2)), torch.tensor(0.5), label=torch.ones(6, dtype=torch.long))
    assert one_time.value.shape == (6, 2)


def test_guidance_has_one_half_on_each():
    base, worker = Gated(), Here(Gated())
    guided = fs.guide(Halves(base, [worker]), "cfg", scale=2.0)
    plan, noise = fs.plan(base.process, "ddim", steps=3), Noise(1).normal(0, (4, 2))
    expected = plan(fs.guide(Gated(), "cfg", scale=2.0), noise, label=2)
    assert torch.equal(plan(guided, noise, label=2), expected)
    assert base.labels == [[2] * 4] * 3 and worker.model.labels == [[5] * 4] * 3  # 5 stands for no label


def test_after_an_error_the_next_call_has_its_own_answers():
    base, workers = Gated(), [Here(Gated()), Here(Gated())]
    halves = Halves(base, workers)
    with pytest.raises(RuntimeError, match="no fours"):
        call(halves, 6, label=4)
    assert torch.equal(call(halves, 6).value, call(Gated(), 6).value)


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match="remembers its run"):
        Halves(deepcache(fs.load("digits"), interval=2), [])
    with pytest.raises(ValueError, match="remembers its run"):
        spread(deepcache(fs.load("digits"), interval=2), 2)
    with pytest.raises(ValueError, match="shared by at least 1, got 0"):
        spread(Gated(), 0)
    model = Gated()
    assert spread(model, 1) is model


@pytest.mark.slow
def test_a_process_of_its_own_answers_fails_and_is_replaced():
    model = fs.load("digits")
    worker = Process(model, 1)
    try:
        halves = Halves(model, [worker])
        x, t = Noise(0).normal(0, (8, 1, 8, 8)), torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
        label = torch.arange(8) % 10
        with torch.no_grad():
            whole = model(x, t, label=label)
            torch.testing.assert_close(halves(x, t, label=label).value, whole.value, rtol=1e-4, atol=1e-5)
            with pytest.raises(RuntimeError, match="Error"):
                worker.answer(worker.ask(x, t, {"label": label, "nothing": label}), x, t)
            os.kill(worker._process.pid, signal.SIGKILL)
            worker._process.join(30)
            with pytest.raises(RuntimeError, match="a worker process died"):
                halves(x, t, label=label)
            torch.testing.assert_close(halves(x, t, label=label).value, whole.value, rtol=1e-4, atol=1e-5)
    finally:
        worker.close()
