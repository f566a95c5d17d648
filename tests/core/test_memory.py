"""A run's memory: what it knows of the run, rows and shared calls, and that nothing is left behind or mixed up."""

from __future__ import annotations

import threading
import weakref

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.conditions.number import Number
from fewstep.core.denoiser import Denoiser
from fewstep.core.live import Loop
from fewstep.core.memory import Memory, Together, ask, grouped, routed
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.guidance.cfg import cfg
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.mixed import Mixed, Request, run_mixed

F64 = torch.float64


class Averaging(Denoiser):
    """Answers with the mean of all it has answered in this run, which only a memory of one's own gets right."""

    def __init__(self):
        super().__init__()
        self.process, self.shape, self.conditions = VP(), (3,), {"label": Label(4)}
        self.seen: list[weakref.ref[Memory]] = []

    @property
    def carries(self):
        return True

    def forward(self, x, t, *, memory=None, label=None, **condition):
        value = torch.tanh(x * (1 + 0.1 * label[:, None].to(x.dtype)))
        if memory is None:
            return Prediction(value, "x0", x, t, self.process)
        self.seen += [weakref.ref(part) for part in memory.parts() if isinstance(part, Memory)]
        memory.count(len(x))

        def answer(new, value, t, memory, condition):
            old, count = (torch.zeros_like(value),) * 2 if new else (memory.get("sum"), memory.get("count"))
            memory.keep("sum", old + value)
            memory.keep("count", count + 1)
            return Prediction((old + value) / (count + 1), "x0", value, t, self.process)

        found = routed(memory, lambda part: part.get("sum") is None, answer, value, t, {})
        return found.replaced(found.value, x=x, t=t)


def noise(n, seed=0):
    return Noise(seed).normal(0, (n, 3), "cpu", F64)


def test_a_memory_knows_the_run():
    memory = Memory(2, (0.9, 0.5, 0.1), 0.0, {"guidance": 2.0, "label": None})
    assert memory.number == -1
    seen = []
    for given in ((), (("guidance", 3.0),), ()):
        memory.advance(given=given)
        seen.append((memory.number, memory.t, memory.step, dict(memory.given)))
    assert seen == [
        (0, 0.9, (0.9, 0.5), {"guidance": 2.0, "label": None}),
        (1, 0.5, (0.5, 0.1), {"guidance": 3.0, "label": None}),
        (2, 0.1, (0.1, 0.0), {"guidance": 2.0, "label": None}),
    ]
    assert memory.branch("empty").number == 2 and memory.branch("empty") is memory.branch("empty")


def test_rows_and_branches_keep_their_own():
    memory = Memory(4)
    memory.keep("h", torch.arange(4.0)[:, None])
    rows = torch.tensor([2, 0])
    assert memory[rows].get("h").tolist() == [[2.0], [0.0]]
    memory[rows].keep("h", torch.tensor([[20.0], [10.0]]))
    assert memory.get("h").flatten().tolist() == [10.0, 1.0, 20.0, 3.0]
    assert memory[1:3].get("h").flatten().tolist() == [1.0, 20.0]
    assert memory[1:][torch.tensor([1])].get("h").item() == 20.0
    assert memory.branch("a").get("h") is None
    memory[rows].branch("a").keep("h", torch.ones(2, 1))
    assert memory.branch("a").get("h").flatten().tolist() == [1.0, 0.0, 1.0, 0.0]


def test_together_splits_what_it_keeps():
    a, b = Memory(2), Memory(3)
    both = Together([a, Together([b])])
    assert both.rows == 5 and both.get("h") is None
    both.keep("h", torch.arange(5.0))
    assert a.get("h").tolist() == [0, 1] and b.get("h").tolist() == [2, 3, 4]
    assert both[3:].get("h").tolist() == [3, 4]
    assert both[torch.tensor([4, 0, 1])].get("h").tolist() == [4, 0, 1]
    b.kept.clear()
    assert both.get("h") is None  # one of them has none yet
    both.branch("x").keep("k", torch.arange(5))
    assert b.branch("x").get("k").tolist() == [2, 3, 4]


def test_rows_are_grouped_and_put_together_in_their_order():
    memories = [Memory(2, (0.9,)), Memory(1, (0.2,)), Memory(2, (0.9,))]
    for memory in memories:
        memory.advance()
    x = torch.arange(5.0)[:, None].expand(5, 3)

    def answer(t, x, _, memory, condition):
        assert memory.rows == len(x) == len(condition["c"])
        return Prediction(x + t, "x0", x, _, VP())

    groups = grouped(Together(memories), lambda part: part.t)
    assert [(key, rows.tolist()) for key, rows, _ in groups] == [(0.9, [0, 1, 3, 4]), (0.2, [2])]
    found = routed(Together(memories), lambda part: part.t, answer, x, torch.rand(5), {"c": torch.arange(5)})
    torch.testing.assert_close(found.value[:, 0], torch.arange(5.0) + torch.tensor([0.9, 0.9, 0.2, 0.9, 0.9]))


def test_a_run_has_one_memory_that_dies_with_it():
    model = Averaging()
    made = plan(model.process, "ddim", 4)
    result = made.run(model, noise(2), label=1, dtype=F64)
    assert result.report["rows"] == 4 and len({id(ref) for ref in model.seen}) >= 1
    assert all(ref() is None for ref in model.seen)
    first = made(model, noise(2), label=1, dtype=F64)
    assert torch.equal(first, result.samples)  # nothing is left from the first run

    class Failing(Averaging):
        def forward(self, x, t, **condition):
            if len(self.seen) == 2:
                raise RuntimeError("in the middle")
            return super().forward(x, t, **condition)

    failing = Failing()
    try:
        made(failing, noise(2), label=1)
    except RuntimeError:
        pass
    assert len(failing.seen) == 2 and all(ref() is None for ref in failing.seen)


def test_without_a_memory_it_is_the_model_alone():
    model = Averaging()
    x, t = noise(2), torch.tensor(0.5, dtype=F64)
    named = model.check_condition({"label": 1}, 2, x.device)
    assert torch.equal(ask(model, x, t, None, named).value, torch.tanh(x * 1.1))


def test_requests_of_other_lengths_sizes_and_labels_join_and_leave():
    model = Averaging()
    requests = [
        Request(plan(model.process, "ddim", 9), noise(2, 1), {"label": 0}, seed=1),
        Request(plan(model.process, "dpmpp-2m", 4), noise(3, 2), {"label": [1, 2, 3]}, seed=2),
        Request(plan(model.process, "ddpm", 6), noise(1, 3), {"label": 2}, seed=3),
    ]
    alone = [r.plan(model, r.noise, seed=r.seed, dtype=F64, **r.condition) for r in requests]
    for found, wanted in zip(run_mixed(requests, model, dtype=F64), alone, strict=True):
        assert torch.equal(found, wanted)
    for most in (3, 4):  # not all fit into a call
        for found, wanted in zip(run_mixed(requests, model, most, F64), alone, strict=True):
            assert torch.equal(found, wanted)
    mixed = Mixed(model, dtype=F64)
    tickets = [mixed.add(requests[0])]
    mixed.step()
    mixed.step()
    tickets.append(mixed.add(requests[1]))
    mixed.step()
    dropped = mixed.add(requests[0])
    mixed.step()
    mixed.drop(dropped)
    tickets.append(mixed.add(requests[2]))
    while len(mixed):
        mixed.step()
    for ticket, wanted in zip(tickets, alone, strict=True):
        assert torch.equal(mixed.pop(ticket), wanted)
    assert all(ref() is None for ref in model.seen)


def test_two_runs_interleaved_by_hand():
    model = Averaging()
    one, other = plan(model.process, "ddim", 5), plan(model.process, "heun", 3)
    wanted = one(model, noise(2), label=0, dtype=F64), other(model, noise(4, 5), label=3, dtype=torch.float32)
    found = []

    def inside(count, t, x, prediction):
        if count == 2:
            found.append(other(model, noise(4, 5), label=3, dtype=torch.float32))

    found.append(one(model, noise(2), label=0, dtype=F64, callback=inside))
    assert torch.equal(found[1], wanted[0]) and torch.equal(found[0], wanted[1])


def test_threads_share_a_model():
    model = Averaging()
    plans = [plan(model.process, "ddim", n) for n in (3, 7, 5, 4)]
    wanted = [p(model, noise(2, k), label=k, dtype=F64) for k, p in enumerate(plans)]
    found = [None] * 4

    def work(k):
        for _ in range(5):
            found[k] = plans[k](model, noise(2, k), label=k, dtype=F64)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_branches_of_guidance_have_memories_of_their_own():
    model = Averaging()
    made = plan(model.process, "ddim", 5)
    guided = cfg(model, 3.0)
    result = made.run(guided, noise(2), label=1, dtype=F64)
    assert result.report["rows"] == 10
    # By hand: each branch averages its own answers, on the states of the guided run.
    states = made.run(guided, noise(2), label=1, dtype=F64, trajectory=True).trajectory
    sums = [torch.zeros(2, 3, dtype=F64), torch.zeros(2, 3, dtype=F64)]
    answers = []
    for k, x in enumerate(states[:-1]):
        for branch, label in enumerate((1, 4)):
            sums[branch] = sums[branch] + torch.tanh(x * (1 + 0.1 * label))
        answers.append(torch.lerp(sums[1] / (k + 1), sums[0] / (k + 1), 3.0))
    seen = []
    made(guided, noise(2), label=1, dtype=F64, callback=lambda n, t, x, p: seen.append(p.value.clone()))
    for one, wanted in zip(seen, answers, strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-12, atol=1e-12)


def test_requests_with_scales_of_their_own_share_calls():
    model = Averaging()
    guided = cfg(model, 2.0)
    requests = [
        Request(plan(model.process, "ddim", 6), noise(2, 1), {"label": 0}),
        Request(plan(model.process, "ddim", 4), noise(3, 2), {"label": 1, "guidance": 5.0}),
        Request(plan(model.process, "ddim", 5, guidance=[1, 4, None, 3, 1]), noise(1, 3), {"label": 2}),
        Request(plan(model.process, "ddim", 5), noise(2, 4), {"label": 2, "guidance": [1.5, 3.0]}),
        Request(plan(model.process, "ddim", 5), noise(2, 4), {"label": 2, "guidance": 1.0}),
    ]
    alone = [r.plan(guided, r.noise, seed=r.seed, dtype=F64, **r.condition) for r in requests]
    for found, wanted in zip(run_mixed(requests, guided, dtype=F64), alone, strict=True):
        assert torch.equal(found, wanted)
    plain = requests[4].plan.run(guided, noise(2, 4), label=2, guidance=1.0, dtype=F64)
    base = requests[4].plan.run(model, noise(2, 4), label=2, dtype=F64)
    assert torch.equal(plain.samples, base.samples) and plain.report["rows"] == base.report["rows"] == 5
    interval = requests[2].plan.run(guided, noise(1, 3), label=2, dtype=F64)
    assert interval.report["rows"] == 8  # two evaluations of one row, three of two


def test_loops_carry_a_memory_too():
    model = Averaging()

    def solver(live, process, times):
        x = live.start()
        for t in times[:-1]:
            x = live.evaluate(x, t).x0
        return live.evaluate(x[1:], times[-2], torch.tensor([1])).value

    made = plan(model.process, "ddim", 3)
    loop = Loop(solver, made.times, made.start, made.process, {"solver": "own"}, most=4)
    x = noise(2) * made.start[1]
    total, y = torch.zeros(2, 3, dtype=F64), x
    for k in range(3):
        total = total + torch.tanh(y * 1.1)
        y = total / (k + 1)
    result = loop.run(model, noise(2), label=1, dtype=F64)
    last = (total + torch.tanh(y * 1.1))[1:] / 4
    torch.testing.assert_close(result.samples, last, rtol=1e-12, atol=1e-12)
    assert result.report["rows"] == 3.5 and result.report["nfe_per_sample"].tolist() == [3, 4]


def test_a_number_for_a_model_that_takes_none_is_refused():
    model = Averaging()
    made = plan(model.process, "ddim", 3, guidance=2.0)
    with pytest.raises(ValueError, match="gives the network 'guidance'"):
        made(model, noise(2))
    with pytest.raises(ValueError, match="gives the network 'guidance'"):
        run_mixed([(made, noise(2))], model)
    assert isinstance(cfg(model, 2.0).conditions["guidance"], Number)


def test_a_memory_with_more_rows_is_the_same_runs_and_changes_all_branches():
    memory = Memory(2, (0.9, 0.5), 0.0)
    wide = memory.repeated(3)
    wide.advance()
    assert (wide.rows, memory.number, memory.t, memory.step) == (6, 0, 0.9, (0.9, 0.5))
    wide.count(6)
    wide.report["seen"] = True
    assert memory.seen == 6 and memory.report == {"seen": True} and memory.get("a") is None
    wide.keep("a", torch.arange(6))
    wide.branch("given").branch("inner").keep("b", 10 * torch.arange(6))
    index = torch.tensor([0, 0, 1, 5, 4, 3])
    wide.change(lambda kept: kept[index])
    assert torch.equal(wide.get("a"), index)
    assert torch.equal(wide.branch("given").branch("inner").get("b"), 10 * index)
