"""The simulated service against formulas of queueing, and against `Mixed` itself on a clock that is simulated too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.denoisers.dataset import DatasetDenoiser
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.mixed import Mixed, Request
from fewstep.scale.simulate import Requests, poisson, simulate


def constant(seconds: float):
    return lambda rows: seconds


def exponential(rate: float, mean: float, count: int, seed: int) -> Requests:
    """Requests with a geometric number of evaluations, so many in the mean."""
    draw = np.random.default_rng(seed)
    return Requests.of(np.cumsum(draw.exponential(1 / rate, count)), draw.geometric(1 / mean, count))


def busy_and_waiting(servers: int, load: float) -> float:
    """The share of requests that wait in M/M/c (Erlang's C) with `load` of all servers busy."""
    offered = servers * load
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) / (1 - load)
    return last / (sum(terms) + last)


def test_one_at_a_time_is_pollaczek_and_khinchine():
    """The mean wait of M/G/1 is rate * E[S^2] / (2 (1 - load)); for one number of steps it is M/D/1's."""
    for mix, load in (({10: 1.0}, 0.6), ({4: 0.7, 20: 0.2, 50: 0.1}, 0.5)):
        shares = np.array(list(mix.values()))
        service = 0.01 * np.array(list(mix))
        mean, square = float(shares @ service), float(shares @ service**2)
        rate = load / mean
        found = simulate(poisson(rate, mix, 100_000, seed=3), constant(0.01), batching="none")
        assert found.latency.mean() == pytest.approx(mean + rate * square / (2 * (1 - load)), rel=0.03)
        assert found.utilisation == pytest.approx(load, rel=0.02) and found.batch == 1
        assert found.throughput == pytest.approx(rate, rel=0.02)


def test_calls_that_differ_wait_as_long_as_their_second_moment_says():
    """Of one evaluation each: E[S^2] is that of the factors. Of twenty each the sum hardly differs."""
    for steps, square in ((1, 0.01**2 * 1.64), (20, (20 * 0.01) ** 2 + 20 * 0.01**2 * 0.64)):
        rate, mean = 0.6 / (steps * 0.01), steps * 0.01
        found = simulate(poisson(rate, {steps: 1.0}, 100_000), constant(0.01), batching="none", spread=(0.2, 1.8))
        assert found.latency.mean() == pytest.approx(mean + rate * square / (2 * 0.4), rel=0.03)
    assert (simulate(poisson(1.0, {3: 1}, 50), constant(0.1), spread=(1.0,)).finished
            == simulate(poisson(1.0, {3: 1}, 50), constant(0.1)).finished).all()  # fmt: skip


@pytest.mark.parametrize("servers", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_several_replicas_are_erlangs(servers):
    load, mean, call = 0.7, 400, 0.001
    rate = servers * load / (mean * call)
    found = simulate(exponential(rate, mean, 60_000, 1), constant(call), servers, "none")
    wait = busy_and_waiting(servers, load) * mean * call / (servers * (1 - load))
    assert found.latency.mean() == pytest.approx(mean * call + wait, rel=0.04)


@pytest.mark.slow
def test_turns_one_by_one_share_the_processor():
    """With calls of one row, many steps and round robin, a request of s seconds takes s / (1 - load)."""
    mix, load, call = {20: 0.6, 80: 0.3, 200: 0.1}, 0.5, 0.001
    mean = sum(steps * share for steps, share in mix.items()) * call
    requests = poisson(load / mean, mix, 6000, seed=0)
    found = simulate(requests, constant(call), batching="steps", max_batch=1)
    for steps in mix:
        own = found.latency[requests.steps == steps].mean()
        assert own == pytest.approx(steps * call / (1 - load), rel=0.08)


def test_shared_calls_wait_for_the_one_that_is_made():
    """Calls that any number of rows share: a request takes its steps, and half a call where it finds one made."""
    found = simulate(poisson(40.0, {7: 1.0}, 40_000), constant(0.02), batching="steps", max_batch=1000)
    assert (found.latency >= 7 * 0.02 - 1e-9).all() and (found.latency <= 8 * 0.02 + 1e-9).all()
    assert found.latency.mean() == pytest.approx(0.02 * (7 + found.utilisation / 2), rel=1e-3)
    assert found.batch * found.utilisation / 0.02 == pytest.approx(40.0 * 7, rel=0.02)  # rows a second


@pytest.mark.parametrize("max_batch", [3, 5, 64])
def test_it_is_mixed_on_a_simulated_clock(max_batch):
    """The same requests, of several sizes, through `Mixed`: each is finished at the same second."""
    requests = poisson(30.0, {2: 1.0, 5: 1.0, 9: 1.0}, 40, seed=5)
    requests = Requests.of(requests.arrive, requests.steps, 1 + np.arange(40) % 3)
    calls = lambda rows: 0.004 + 0.003 * rows  # noqa: E731
    mixed = Mixed(DatasetDenoiser(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), VP()), max_batch)
    plans = {steps: plan(VP(), "ddim", steps) for steps in (2, 5, 9)}
    now, coming, finished, tickets, seen = 0.0, 0, {}, {}, []
    model = mixed.model
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    while coming < 40 or len(mixed):
        if not len(mixed):
            now = max(now, float(requests.arrive[coming]))
        while coming < 40 and requests.arrive[coming] <= now:
            noise = Noise(coming).normal(0, (int(requests.rows[coming]), 2))
            tickets[mixed.add(Request(plans[int(requests.steps[coming])], noise))] = coming
            coming += 1
        done = mixed.step()
        now += calls(seen[-1])
        finished |= {tickets[ticket]: now for ticket in done}
    found = simulate(requests, calls, max_batch=max_batch)
    assert found.finished == pytest.approx([finished[i] for i in range(40)], rel=1e-12)
    assert found.batch == pytest.approx(np.mean(seen))


def test_whole_runs_take_what_is_equal_and_waits_longest():
    requests = Requests.of([0.0, 0.1, 0.2, 0.3, 0.4], [4, 2, 4, 2, 4])
    found = simulate(requests, lambda rows: 1.0 + rows, batching="whole", max_batch=2)
    # 0 alone until 8; then the two of two steps, 3 seconds a call, until 14; then 2 and 4 until 26.
    assert found.finished.tolist() == [8.0, 14.0, 26.0, 14.0, 26.0]
    assert found.batch == pytest.approx((4 * 1 + 2 * 2 + 4 * 2) / 10)
    assert found.utilisation == 1.0


def test_a_request_goes_to_the_replica_with_the_fewest_evaluations_to_make():
    requests = Requests.of([0.0, 0.0, 0.5, 2.5], [8, 2, 3, 1])
    found = simulate(requests, constant(1.0), 2)
    # 0 and 1 apart; 2 to the second, which has 2 to make against 8, and joins its second call; 3 there too.
    assert found.finished.tolist() == [8.0, 2.0, 4.0, 4.0]
    assert found.utilisation == pytest.approx(12 / 16)


def test_more_replicas_and_larger_batches_serve_more():
    requests = Requests.of(np.zeros(4000), np.full(4000, 5))
    rates = [simulate(requests, lambda rows: 0.01 + 0.001 * rows, n, max_batch=b).throughput
             for n, b in ((1, 1), (1, 16), (10, 16))]  # fmt: skip
    exact = [n * b / (5 * (0.01 + 0.001 * b)) for n, b in ((1, 1), (1, 16), (10, 16))]
    assert rates == pytest.approx(exact, rel=0.02)


def test_percentiles_leave_out_the_first():
    found = simulate(Requests.of(np.arange(10.0), 1), constant(0.5))
    assert found.p50 == found.p95 == found.p99 == pytest.approx(0.5)
    assert found.percentile(100, skip=0.0) == pytest.approx(0.5)


def test_one_seed_one_stream():
    a, b, c = (poisson(3.0, {2: 1, 4: 3}, 4000, seed=seed) for seed in (0, 0, 1))
    assert (a.arrive == b.arrive).all() and (a.steps == b.steps).all() and (a.arrive != c.arrive).any()
    assert (a.steps == 4).mean() == pytest.approx(0.75, abs=0.03) and 4000 / a.arrive[-1] == pytest.approx(3, rel=0.05)


def test_bad_input():
    one = Requests.of([0.0], 3, 4)
    for arrive, steps in (([], 1), ([1.0, 0.0], 1), ([math.nan], 1), ([[0.0]], 1)):
        with pytest.raises(ValueError, match="arrive in order"):
            Requests.of(arrive, steps)
    with pytest.raises(ValueError, match="at least one evaluation"):
        Requests.of([0.0, 1.0], [1, 0])
    with pytest.raises(ValueError, match="batching must be one of steps, whole, none, got 'both'"):
        simulate(one, constant(1.0), batching="both")
    with pytest.raises(ValueError, match="replicas must be a whole number of at least 1, got 0"):
        simulate(one, constant(1.0), 0)
    with pytest.raises(ValueError, match="a request of 4 samples does not fit into calls of 3"):
        simulate(one, constant(1.0), max_batch=3)
    with pytest.raises(ValueError, match="factors of spread must be at least 0, got -1"):
        simulate(one, constant(1.0), spread=(1.0, -1.0))
    for rate, steps, count in ((0.0, {1: 1}, 1), (1.0, {}, 1), (1.0, {1: -1.0}, 1), (1.0, {1: 1}, 0)):
        with pytest.raises(ValueError, match="must"):
            poisson(rate, steps, count)
