"""ab-cache: the forecast's order and exactness, every way in which a plan runs, and what is refused."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from sampled import sampled

import fewstep as fs
from fewstep.caching.ab_cache import ab_cache, log_snr_of
from fewstep.caching.forecast import COORDINATES, coordinate_at
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.ops import Draw, Evaluate
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction, conversion, scales
from fewstep.core.record import record
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.per_element import PerElement
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.compiled import compile
from fewstep.sampling.mixed import Request, run_mixed
from fewstep.sampling.skipping import reuse
from fewstep.sampling.tell import tell

F64 = torch.float64
STD = 0.7


def noise(n=4, shape=(2, 3), seed=3):
    return Noise(seed).normal(0, (n, *shape), "cpu", F64)


class Polynomial(Denoiser):
    """Its prediction in a coordinate is a polynomial of log-SNR, whatever the state."""

    def __init__(self, process, coordinate, degree):
        super().__init__()
        self.process, self.coordinate, self.degree = process, coordinate, degree

    def forward(self, x, t, **condition):
        levels = tuple(float(c) for c in scales(self.process, t))
        value = sum(0.3 ** (n + 1) * log_snr_of(levels) ** n for n in range(self.degree + 1))
        p, q = conversion(coordinate_at(self.coordinate, *levels[:2], STD), "v", *levels)
        return Prediction(p * x + q * value, "v", x, t, self.process)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_polynomial_along_the_run_is_forecast_exactly(process, coordinate, order):
    times = [process.time(1.5 - 4.0 * (1 - i / 16) ** 1.3) for i in range(17)]  # steps that differ
    made, model = plan(process, "ddim", timesteps=times), Polynomial(process, coordinate, order - 1)
    wanted = made(model, noise(), dtype=F64)
    cached = ab_cache(made, 3, order, coordinate, STD, start=0.25)
    assert cached.nfe == 4 + 4
    torch.testing.assert_close(cached(model, noise(), dtype=F64), wanted, rtol=1e-9, atol=1e-9)
    if order > 1:  # one evaluation fewer to go through is not enough
        lower = ab_cache(made, 3, order - 1, coordinate, STD, start=0.25)
        assert float((lower(model, noise(), dtype=F64) - wanted).abs().max()) > 1e-6


@sampled("order, coordinate", [1, 2, 3], ["own", "eps", "x0"])
def test_the_error_of_a_skipped_output_falls_with_the_power_of_the_step(order, coordinate, make_mixture):
    process, model = VP(), make_mixture(VP(), (2, 3))

    def last_answer(trace, process, times):
        """The path of ddim, and what the network says at its end."""
        x = trace.start()
        for a, b in zip(times, times[1:], strict=False):
            answer = trace.evaluate(x, a)
            x = x * (process.alpha(b) / process.alpha(a)) + answer.eps * (
                process.sigma(b) - process.sigma(a) * process.alpha(b) / process.alpha(a)
            )
        return trace.evaluate(x, times[-1]).x0

    errors = []
    for n in (96, 192):
        made = record(last_answer, process, [process.time(-1.5 + 2.0 * i / n) for i in range(n + 1)], {}, {})
        cached = ab_cache(made, skipped={n}, order=order, coordinate=coordinate, data_std=STD)
        errors.append(float((cached(model, noise(32), dtype=F64) - made(model, noise(32), dtype=F64)).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


def test_own_is_what_the_network_of_edms_preconditioning_puts_out():
    class Recorded(torch.nn.Module):
        def forward(self, x, noise):
            self.output = torch.sin(3 * x + noise[:, None, None])
            return self.output

    for process in (VP(), EDM(), Flow()):
        model = NetworkDenoiser(Recorded(), process, "x0", precondition="edm", data_std=STD)
        t = torch.tensor(process.time(-0.4), dtype=F64)
        answer = model(noise().float(), t.float())
        levels = tuple(float(c) for c in scales(process, t))
        p, q = conversion("x0", coordinate_at("own", *levels[:2], STD), *levels)
        torch.testing.assert_close(p * answer.x + q * answer.value, model.network.output, rtol=1e-5, atol=1e-5)
    assert coordinate_at("own", *scales(VP(), 0.3)[:2], 1.0) == pytest.approx((VP().sigma(0.3), -VP().alpha(0.3)))


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun", "ab-4", "unipc-3", "plms", "ddpm", "dpmpp-2m-sde"])
@pytest.mark.parametrize("process", [VP(), Flow()], ids=lambda p: p.name)
def test_any_plan_is_a_plan_again_with_fewer_evaluations(solver, process, make_mixture):
    made, model = plan(process, solver, 24), make_mixture(process, (2, 3))
    cached = fs.find("ab-cache")(made, every=2, order=2)
    assert isinstance(cached, Plan) and cached.nfe == (made.nfe + 1) // 2
    assert Plan.from_json(cached.to_json()) == cached
    assert [op for op in cached.ops if isinstance(op, Draw)] == [op for op in made.ops if isinstance(op, Draw)]
    assert [(op.x, op.t) for op in cached.evaluations] == [(op.x, op.t) for op in made.evaluations[::2]]
    assert (cached.times, cached.start, cached.result) == (made.times, made.start, made.result)
    whole, found = (p(model, noise(), seed=5, dtype=F64) for p in (made, cached))
    bound = 0.35 if made.stochastic else 0.15  # a path with noise in it is rough
    assert 1e-8 < float((found - whole).norm() / whole.norm()) < bound
    assert str(cached).startswith(f"Plan: {cached.nfe} evaluations, {process.name} process, solver {solver}, ")
    assert "skipped" in str(cached) and "forecast order 2 in own, data_std 1" in str(cached)


def test_nothing_skipped_is_the_plan_itself():
    made = plan(VP(), "dpmpp-2m", 6)
    for idle in ({"every": 1}, {"skipped": ()}, {"start": 0.9, "stop": 1.0}):
        assert ab_cache(made, **idle) is made


def test_order_1_in_eps_is_reuse():
    made = plan(VP(), "dpmpp-2m", 9)
    odd = [1, 3, 5, 7]
    assert reuse(made, odd) == ab_cache(made, skipped=odd, order=1, coordinate="eps")
    assert reuse(made, odd).ops == ab_cache(made, 2, 1, "eps").ops


def test_the_forecast_goes_through_the_last_evaluations_made():
    """By hand: ddim's third and fifth step with 2 eps - eps_last of unequal steps."""
    process = VP()
    made = plan(process, "ddim", timesteps=[process.time(u) for u in (-1.5, -1.0, -0.4, 0.0, 0.5, 1.1)])
    cached = ab_cache(made, skipped=(2, 4), order=2, coordinate="eps")
    model = Polynomial(process, "eps", 3)
    eps, states = [], []
    for i, t in enumerate(made.times[:-1]):
        states.append(noise() * process.sigma(t) if i == 0 else x)  # noqa: F821
        u = [process.log_snr(s) for s in made.times]
        if i in (2, 4):
            j, k = (0, 1) if i == 2 else (1, 3)
            eps.append(eps[j] + (eps[k] - eps[j]) * (u[i] - u[j]) / (u[k] - u[j]))
        else:
            eps.append(model(states[i], torch.tensor(t, dtype=F64)).eps)
        s = made.times[i + 1]
        x0 = (states[i] - process.sigma(t) * eps[i]) / process.alpha(t)
        x = process.alpha(s) * x0 + process.sigma(s) * eps[i]
    torch.testing.assert_close(cached(model, noise(), dtype=F64), x, rtol=1e-10, atol=1e-10)
    assert [op.t for op in cached.evaluations] == [made.times[i] for i in (0, 1, 3)]


def test_every_second_evaluation_at_equal_distances_has_the_known_weights():
    process = VP()
    made = plan(process, "ddim", timesteps=[process.time(-1.0 + 0.4 * i) for i in range(7)])
    for order, wanted in ((1, [1]), (2, [-0.5, 1.5]), (3, [3 / 8, -10 / 8, 15 / 8])):
        cached = ab_cache(made, order=order, coordinate="eps")
        named = {dict(op.outputs)["eps"] for op in cached.evaluations}
        found = [c for slot, c in cached.ops[-1].terms if slot in named]  # of the step from evaluation 5
        assert [c / sum(found) for c in found[::-1]] == pytest.approx(wanted, rel=1e-9)


def test_outside_start_and_stop_all_are_made():
    made = plan(VP(), "ddim", 20)

    def times(**options):
        kept = [op.t for op in ab_cache(made, **options).evaluations]
        return [i for i, op in enumerate(made.evaluations) if op.t in kept]

    assert times(every=5) == [0, 5, 10, 15]
    assert times(every=5, start=0.3, stop=0.8) == [0, 1, 2, 3, 4, 5, 10, 15, 16, 17, 18, 19]
    assert times(skipped=[2, 19]) == [i for i in range(20) if i not in (2, 19)]


def test_the_last_of_several_evaluations_at_one_level_counts(make_mixture):
    """ab-4 evaluates its second time twice."""
    made, model = plan(VP(), "ab-4", 8), Polynomial(VP(), "own", 1)
    times = [op.t for op in made.evaluations]
    assert times[1] == times[2] and times[3] != times[4]
    cached = ab_cache(made, skipped=(4,), order=3, data_std=STD)
    torch.testing.assert_close(cached(model, noise(), dtype=F64), made(model, noise(), dtype=F64), rtol=1e-9, atol=1e-9)
    smooth = make_mixture(VP(), (2, 3))
    assert bool(torch.isfinite(cached(smooth, noise(), dtype=F64)).all())


def test_pure_noise_is_no_node_but_serves_where_it_is_all_there_is(make_mixture):
    """A flow starts at alpha = 0: its forecasts of order 3 go through what comes after, and evaluation 1 reuses it."""
    made, model = plan(Flow(), "ddim", 12), make_mixture(Flow(), (2, 3))
    assert made.evaluations[0].scales[0] == 0
    later, at_once = (ab_cache(made, skipped=s, order=1 + (s != {1})) for s in ({3}, {1}))
    assert [dict(op.outputs).keys() for op in later.evaluations][:3] == [{"x0"}, {"x0", "v"}, {"x0", "v"}]
    assert "v" in dict(at_once.evaluations[0].outputs)
    for cached in (later, at_once, ab_cache(made, order=3), ab_cache(made, order=1, coordinate="flow")):
        assert bool(torch.isfinite(cached(model, noise(), dtype=F64)).all())
    straight = Polynomial(Flow(), "flow", 0)
    cached = ab_cache(made, order=3, coordinate="flow")
    torch.testing.assert_close(cached(straight, noise(), dtype=F64), made(straight, noise(), dtype=F64))


@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddim", "ddpm"])
def test_bands_are_rewritten_each_with_its_own_levels(solver):
    index, shape = (0, 1, 1, 0, 1, 0), (2, 3)
    bands = PerElement((VP(), VP(beta_max=12.0)), index, shape)

    class Banded(Polynomial):
        def forward(self, x, t, **condition):
            answers = [Polynomial(band, "own", 1)(x, t).x0 for band in bands.bands]
            mask = torch.tensor(index).view(shape).bool()
            return Prediction(torch.where(mask, answers[1], answers[0]), "x0", x, t, bands)

    made = plan(bands, solver, 10)
    cached, model = ab_cache(made, 2, 2, "own", STD, start=0.2), Banded(bands, "own", 1)
    assert cached.nfe == 6 and Plan.from_json(cached.to_json()) == cached and cached.spread == made.spread
    whole, found = (p(model, noise(), seed=1, dtype=F64) for p in (made, cached))
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-9)
    assert ab_cache(made.band(1), 2, 2, "own", STD, start=0.2).nfe == cached.band(1).nfe
    for k in (0, 1):
        one = Polynomial(bands.bands[k], "own", 2)
        alone = ab_cache(made.band(k), 2, 2)(one, noise(), seed=1, dtype=F64)
        torch.testing.assert_close(ab_cache(made, 2, 2).band(k)(one, noise(), seed=1, dtype=F64), alone)


def test_numbers_for_the_network_go_with_the_evaluations():
    made = tell(plan(VP(), "ddim", 6), guidance=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert [op.given for op in ab_cache(made).evaluations] == [(("guidance", g),) for g in (1.0, 3.0, 5.0)]


def test_it_runs_mixed_compiled_and_in_parallel_calls(make_mixture):
    model = make_mixture(VP(), (2, 3))
    made = [ab_cache(plan(VP(), "dpmpp-2m", 12)), ab_cache(plan(VP(), "ddpm", 9), 3, 2, "eps"), plan(VP(), "ddim", 7)]
    alone = [p(model, noise(seed=k), seed=k, dtype=F64) for k, p in enumerate(made)]
    mixed = run_mixed([Request(p, noise(seed=k), seed=k) for k, p in enumerate(made)], model, dtype=F64)
    parallel = fs.run_parallel(made[0], model, noise(seed=0), tolerance=1e-12, dtype=F64).samples
    compiled = compile(made[0], model, backend="eager")(noise(seed=0), dtype=F64)
    for found, wanted in zip((*mixed, parallel, compiled), (*alone, alone[0], alone[0]), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "ddpm"])
def test_it_is_the_scheduler_of_a_pipeline(solver):
    pytest.importorskip("diffusers")
    process = Discrete.linear()

    def network(x, t):
        return torch.tanh(0.5 * x + t / 1000)

    class Eps(Denoiser):
        def forward(self, x, t, **condition):
            return Prediction(network(x, t), "eps", x, t, process)

    model = Eps()
    model.process = process
    made = ab_cache(plan(process, solver, 10), order=2, coordinate="eps")
    start = noise().float()
    scheduler = made.as_diffusers_scheduler()
    scheduler.set_timesteps(made.nfe)
    x, generator = start * scheduler.init_noise_sigma, torch.Generator().manual_seed(4)
    for t in scheduler.timesteps:
        eps = network(scheduler.scale_model_input(x, t), t.float())
        x = scheduler.step(eps, t, x, generator=generator).prev_sample

    class Stream:
        generator = torch.Generator().manual_seed(4)

        def normal(self, draw, shape, device="cpu", dtype=torch.float32):
            return torch.randn(tuple(shape), generator=self.generator, dtype=dtype)

    wanted = made(model, start * scheduler.init_noise_sigma / made.start[1], source=Stream())
    torch.testing.assert_close(x, wanted, rtol=1e-5, atol=1e-5)


def test_about_says_how_and_the_check_does_it_again():
    """Order 1 in eps brings a second-order solver down to 1; order 2 keeps it, and steps of order 3 show a loss."""
    made = plan(VP(), "dpmpp-2m", 12)
    low, high = ab_cache(made, order=1, coordinate="eps"), ab_cache(made, order=3)
    assert low.about["solver"] == "dpmpp-2m, 6 skipped" and low.about["forecast"] == "order 1 in eps"
    assert low.check().order == pytest.approx(1, abs=0.2)
    assert high.check().order == pytest.approx(2, abs=0.2) and high.check().steady == pytest.approx(2, abs=0.3)
    assert Plan.from_json(high.to_json()).check() == high.check()
    assert low.check().off_level < 1e-12  # eps that does not change is forecast as it is, F is not
    third = ab_cache(plan(VP(), "dpmpp-3m", 12), order=3).check()  # its first forecasts are of order 1 and 2
    assert third.order == pytest.approx(2, abs=0.3) and third.steady > 2.6
    assert ab_cache(made, skipped=[3]).check().order is None  # which ones, on another grid?
    renamed = dataclasses.replace(high, about=dict(high.about) | {"solver": "dpmpp-2m, 6 skipped, moved"})
    assert renamed.check().order is None and "order" in str(high.check())
    assert ab_cache(plan(VP(), "ddpm", 12)).check().order is None


def test_bad_input_says_so():
    made = plan(VP(), "ddim", 8)
    for options, message in (
        ({"every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"every": 1.5}, "every must be a whole number, got 1.5"),
        ({"order": 0}, "order must be a whole number of at least 1, got 0"),
        ({"order": 3, "skipped": [1, 2, 3]}, "an order of 3 needs as many evaluations before a skipped one, and there"),
        ({"skipped": [0]}, "evaluations 1 to 7 can be skipped, not 0"),
        ({"skipped": [3, 8]}, "evaluations 1 to 7 can be skipped, not 8"),
        ({"skipped": ["a"]}, "evaluations 1 to 7 can be skipped, not a"),
        ({"skipped": [3], "start": 0.2}, "no start or stop, got 0.2 and 1.0"),
        ({"coordinate": "epsilon"}, "unknown coordinate 'epsilon': did you mean 'eps'"),
        ({"coordinate": "score"}, "unknown coordinate 'score'"),
        ({"data_std": 0.0}, "data_std must be positive and finite, got 0.0"),
        ({"data_std": math.inf}, "data_std must be positive and finite, got inf"),
        ({"start": -0.1}, "start is a fraction of the run, from 0 to 1, got -0.1"),
        ({"stop": 1.1}, "stop is a fraction of the run, from 0 to 1, got 1.1"),
    ):
        with pytest.raises(ValueError, match=message):
            ab_cache(made, **options)
    with pytest.raises(ValueError, match="has no table; only a plan has"):
        ab_cache(plan(VP(), "rk-adaptive"))
    with pytest.raises(ValueError, match="plan must be a plan, as fs.plan makes"):
        ab_cache("ddim")


def moved(made, number, levels):
    """The plan with other scales at an evaluation."""
    count = iter(range(made.nfe))
    ops = tuple(
        dataclasses.replace(op, scales=levels) if isinstance(op, Evaluate) and next(count) == number else op
        for op in made.ops
    )
    return dataclasses.replace(made, ops=ops)


def test_a_level_at_which_the_coordinate_says_nothing_is_refused():
    made = plan(VP(), "dpmpp-2m", 6)
    for coordinate, levels in (
        ("eps", (0.0, 1.0, -1.0, 1.0)),  # of x0, which this solver wants
        ("velocity", (1.0, 0.0, -1.0, math.inf)),
        ("velocity", (0.5, 0.5, -1.0, -1.0)),  # the state itself
    ):
        message = f"evaluation 3 is at alpha = {levels[0]:g} and sigma = {levels[1]:g}, where '{coordinate}' cannot"
        with pytest.raises(ValueError, match=message):
            ab_cache(moved(made, 3, levels), skipped=[3], order=2, coordinate=coordinate)
    with pytest.raises(ValueError, match="evaluation 0 is at alpha = 1 and sigma = 0, where 'velocity' cannot"):
        ab_cache(moved(made, 0, (1.0, 0.0, -1.0, math.inf)), skipped=[1], order=1, coordinate="velocity")
    noisy = plan(VP(), "ddim", timesteps=[0.9, 0.6, 0.3])  # near pure noise ddim wants x0, which x0 is
    assert ab_cache(moved(noisy, 1, (0.0, 1.0, -1.0, 1.0)), skipped=[1], order=1, coordinate="x0").nfe == 1
