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


class Faulty(Elementwise):
    """Out of memory beyond so many rows; an error for one label."""

    def __init__(self, most: int = 100, bad: int | None = None):
        super().__init__()
        self.most, self.bad = most, bad

    def forward(self, x, t, label):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.bad is not None and bool((label == self.bad).any()):
            raise RuntimeError("this label breaks it")
        return super().forward(x, t, label)


def test_an_error_finishes_the_request_that_causes_it_and_no_other():
    model = Faulty(bad=2)
    every = requests()
    mixed = Mixed(model)
    tickets = [mixed.add(one) for one in every]
    while len(mixed):
        mixed.step()
    with pytest.raises(RuntimeError, match="this label breaks it"):
        mixed.pop(tickets[0])
    for ticket, one in list(zip(tickets, every, strict=True))[1:]:
        assert torch.equal(mixed.pop(ticket), alone(Elementwise(), one))


def test_samples_that_are_not_finite_are_one_requests_alone():
    class Broken(Elementwise):
        def forward(self, x, t, label):
            answer = super().forward(x, t, label)
            return answer.replaced(torch.where((label == 2).view(-1, 1, 1), torch.nan, answer.value))

    every = requests()
    mixed = Mixed(Broken())
    tickets = [mixed.add(one) for one in every]
    while len(mixed):
        mixed.step()
    with pytest.raises(ValueError, match="not finite"):
        mixed.pop(tickets[0])
    for ticket, one in list(zip(tickets, every, strict=True))[1:]:
        assert torch.equal(mixed.pop(ticket), alone(Elementwise(), one))


@pytest.mark.parametrize("carries", [False, True])
def test_where_memory_runs_out_calls_are_halved(carries):
    from fewstep.guidance.guide import guide

    base, whole = Faulty(most=3), Elementwise()
    model, reference = (guide(m, "cfg", scale=1.5) if carries else m for m in (base, whole))
    every = requests()
    out = run_mixed(every, model)
    assert base.sizes and max(base.sizes) <= 3
    for one, samples in zip(every, out, strict=True):
        assert torch.equal(samples, alone(reference, one))
    alone_too = run_mixed([(plan(VP(), "ddim", 2), torch.zeros(5, 2, 3))], Faulty(most=1))
    assert len(alone_too[0]) == 5
    with pytest.raises(torch.OutOfMemoryError):
        run_mixed([(plan(VP(), "ddim", 2), torch.zeros(5, 2, 3))], Faulty(most=0))


def test_owners_take_turns():
    model = Elementwise()
    mixed = Mixed(model, max_batch=4)
    many = [mixed.add(Request(plan(VP(), "ddim", 6), Noise(i).normal(0, (1, 2, 3)), owner="many")) for i in range(12)]
    single = mixed.add(Request(plan(VP(), "ddim", 3), Noise(99).normal(0, (1, 2, 3)), owner="one"))
    done = [ticket for _ in range(3) for ticket in mixed.step()]
    assert done == [single]  # in every call, although twelve of another owner came before it
    calls = mixed.calls
    while len(mixed):
        done += mixed.step()
    assert sorted(done) == sorted([*many, single]) and mixed.calls - calls <= -(-(12 * 6 - 9) // 4) + 3


def test_a_held_request_waits_for_its_model():
    class Other(Elementwise):
        def forward(self, x, t, label):
            return super().forward(x, t, label + 1)

    model, other = Elementwise(), Other()
    first, second, *_ = requests()
    mixed = Mixed(model)
    a, b = mixed.add(first), mixed.add(second)
    mixed.hold(a, 2)
    while mixed.waiting:
        mixed.step()
    assert len(mixed) == 1 and torch.equal(mixed.pop(b), alone(model, second))
    mixed.change(a, other)
    while len(mixed):
        mixed.step()
    # Two evaluations with the one model and the rest with the other.
    count = 0

    class Switching(Elementwise):
        def forward(self, x, t, label):
            nonlocal count
            count += 1
            return (model if count <= 2 else other)(x, t, label=label)

    assert torch.equal(mixed.pop(a), alone(Switching(), first))
    assert other.sizes == [3] * 2 * (first.plan.nfe - 2)  # alone in its calls, in both runs


def test_models_of_their_own_share_no_call_and_watching_sees_every_answer():
    model, other, seen = Elementwise(), Elementwise(), []
    first, second, *_ = requests()
    own = Request(first.plan, first.noise, first.condition, model=other, watch=lambda *told: seen.append(told))
    out = run_mixed([own, second], model)
    assert torch.equal(out[0], alone(other, Request(first.plan, first.noise, first.condition)))
    assert set(model.sizes) == {2} and set(other.sizes) == {3}
    assert [number for number, *_ in seen] == list(range(1, first.plan.nfe + 1))
    assert [t for _, t, *_ in seen] == [op.t for op in first.plan.evaluations]
    assert seen[0][3].x0.shape == (3, 2, 3)


def test_a_source_of_noise_stands_for_seed_and_first():
    from fewstep.core.noise import Seeds

    model, made = Elementwise(), plan(VP(), "ddpm", 5)
    source = Seeds((7, 3), (2, 0))
    noise = source.normal(0, (2, 2, 3))
    (out,) = run_mixed([Request(made, noise, source=source)], model)
    for row, (seed, number) in enumerate(((7, 2), (3, 0))):
        one = made(model, Noise(seed, number).normal(0, (1, 2, 3)), seed=seed, first=number)
        assert torch.equal(out[row : row + 1], one)
