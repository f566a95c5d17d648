"""run-mixed: requests that share calls come out as if alone."""

from __future__ import annotations

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.mixed import Mixed, Request, run_mixed


class Elementwise(Denoiser):
    """A denoiser whose rounding does not depend on the batch."""

    conditions = {"label": Label(5)}

    def __init__(self):
        super().__init__()
        self.process, self.sizes = VP(), []

    def forward(self, x, t, label):
        self.sizes.append(len(x))
        t = t.expand(len(x)).view(-1, 1, 1)
        return Prediction(torch.tanh(x * (1 + t)) + 0.1 * label.view(-1, 1, 1), "x0", x, t, self.process)


def requests():
    process = VP()
    noise = lambda seed, n: Noise(seed).normal(0, (n, 2, 3))  # noqa: E731
    return [
        Request(plan(process, "unipc-3", 6), noise(1, 3), {"label": 2}, seed=1),
        Request(plan(process, "ddpm", 9), noise(2, 2), {"label": [0, 4]}, seed=2, first=5),
        Request(plan(process, "heun", 3), noise(3, 1)),
        Request(plan(process, "dpmpp-2m", 8, strength=0.5), noise(4, 2), seed=4, init=torch.ones(2, 2, 3)),
    ]


def alone(model, one: Request):
    return one.plan(model, one.noise, seed=one.seed, first=one.first, init=one.init, **one.condition)


def test_each_is_bit_equal_to_its_run_alone_and_calls_are_shared():
    model = Elementwise()
    every = requests()
    out = run_mixed(every, model)
    assert len(model.sizes) == max(one.plan.nfe for one in every) == 9
    assert model.sizes[0] == 8 and model.sizes[-1] == 2
    for one, samples in zip(every, out, strict=True):
        assert torch.equal(samples, alone(model, one))


def test_a_full_call_leaves_the_others_for_the_next():
    model = Elementwise()
    every = requests()
    out = run_mixed(every, model, max_batch=4)
    assert max(model.sizes) <= 4
    for one, samples in zip(every, out, strict=True):
        assert torch.equal(samples, alone(model, one))


def test_requests_join_and_leave_between_calls():
    model = Elementwise()
    first, second, third, _ = requests()
    mixed = Mixed(model)
    a = mixed.add(first)
    mixed.step()
    b = mixed.add(second)
    mixed.step()
    c = mixed.add(third)
    mixed.drop(c)
    done = []
    while len(mixed):
        done += mixed.step()
    assert done == [a, b] and mixed.step() == [] and mixed.calls == 1 + 9
    assert torch.equal(mixed.pop(a), alone(model, first)) and torch.equal(mixed.pop(b), alone(model, second))
    with pytest.raises(KeyError):
        mixed.pop(a)


def test_who_shares_the_batch_changes_no_bit_of_a_networks_samples():
    from fewstep.hub.models import load

    model = load("digits")
    noise = lambda seed, n: Noise(seed).normal(0, (n, 1, 8, 8))  # noqa: E731
    mine = (plan(model.process, "unipc-2", 5), noise(1, 3), {"label": 3})
    one = run_mixed([mine, (plan(model.process, "ddim", 7), noise(2, 2), {"label": 1})], model)
    other = run_mixed([mine, (plan(model.process, "dpmpp-3m", 7), noise(9, 2), {"label": [8, 9]})], model)
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
    torch.testing.assert_close(one[0], mine[0](model, mine[1], label=3), rtol=1e-3, atol=1e-4)


def test_bad_requests_are_named_before_anything_runs():
    model = Elementwise()
    good = (plan(VP(), "ddim", 3), torch.zeros(2, 2, 3))
    with pytest.raises(ValueError, match="made for the process 'flow'"):
        run_mixed([good, (plan(Flow(), "ddim", 3), torch.zeros(2, 2, 3))], model)
    with pytest.raises(ValueError, match="unknown condition 'labl'"):
        run_mixed([good, (*good, {"labl": 3})], model)
    with pytest.raises(ValueError, match="2 samples does not fit into calls of 1"):
        run_mixed([good], model, max_batch=1)
    with pytest.raises(ValueError, match="no requests"):
        run_mixed([], model)
    with pytest.raises(ValueError, match="max_batch must be at least 1"):
        Mixed(model, 0)
    assert model.sizes == []
