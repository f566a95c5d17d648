"""Noise levels by element: the same as scalar plans where they must be, and of the solvers' orders.

Methods: per-element.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.ops import play
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.core.process import process_from_config
from fewstep.core.sampler import begin_run
from fewstep.core.unrolled import unrolled
from fewstep.processes.cosine import Cosine
from fewstep.processes.flow import Flow
from fewstep.processes.per_element import PerElement
from fewstep.processes.shortest_path import ShortestPath
from fewstep.processes.vp import VP
from fewstep.sampling.alignment import align
from fewstep.sampling.brownian import BrownianNoise
from fewstep.sampling.build import plan, solver_names
from fewstep.sampling.checkpointed import checkpointed
from fewstep.sampling.compensation import compensate, updates
from fewstep.sampling.compiled import Compiled, step
from fewstep.sampling.heavy_ball import heavy_ball
from fewstep.sampling.mixed import Request, run_mixed
from fewstep.sampling.parallel import run_parallel
from fewstep.sampling.skipping import reuse, skip
from fewstep.sampling.time_shift import time_shift

F64 = torch.float64
SHAPE = (2, 3)
INDEX = (0, 1, 2, 2, 1, 0)
COARSE = (0, 0, 1, 1, 0, 1)
BANDS = (VP(), VP(beta_max=12.0), VP(beta_max=25.0))


class Mixture(Denoiser):
    """A mixture with diagonal covariances under coefficients that may differ by element; exact."""

    def __init__(self, process, predicts="x0", components=3, shape=SHAPE):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.process, self.predicts, self.shape = process, predicts, shape
        self.means = 0.8 * torch.randn(components, *shape, generator=generator, dtype=F64)
        self.variances = (0.35 + 0.25 * torch.rand(components, *shape, generator=generator, dtype=F64)) ** 2

    def forward(self, x, t, **condition):
        alpha, sigma = (c.reshape(-1, 1, *(c.shape[1:] or [1] * (x.ndim - 1))) for c in self._levels(t))
        y = x[:, None].double() - alpha * self.means
        total = alpha**2 * self.variances + sigma**2
        share = torch.softmax(-0.5 * (y**2 / total + total.log()).flatten(2).sum(-1), -1)
        x0, eps = self.means + alpha * self.variances / total * y, sigma / total * y
        inner = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[self.predicts]
        value = (share.reshape(*share.shape, *[1] * (x.ndim - 1)) * inner).sum(1)
        return Prediction(value.to(x.dtype), self.predicts, x, t, self.process)

    def _levels(self, t):
        return self.process.alpha(t), self.process.sigma(t)


@pytest.fixture(scope="module")
def noise():
    return Noise(3).normal(0, (5, *SHAPE), "cpu", F64)


def grid(process, n):
    return [process.time(float(u)) for u in np.linspace(-math.log(3), -math.log(0.1), n + 1)]


def test_coefficients_answer_by_element_for_tensors_and_by_the_clock_for_numbers():
    process = PerElement(BANDS, INDEX, SHAPE)
    t = torch.tensor([0.2, 0.7, 0.9, 0.4], dtype=F64)
    for name in ("alpha", "sigma", "dalpha", "dsigma", "drift", "diffusion2"):
        found = getattr(process, name)(t)
        assert found.shape == (4, *SHAPE)
        for element, band in enumerate(INDEX):
            torch.testing.assert_close(found.flatten(1)[:, element], getattr(BANDS[band], name)(t))
        assert getattr(process, name)(t[1]).shape == (1, *SHAPE)
        assert getattr(process, name)(0.7) == getattr(VP(), name)(0.7)
    assert torch.equal(process.log_snr(t), VP().log_snr(t))
    assert torch.equal(process.time(process.log_snr(t)), VP().time(VP().log_snr(t)))
    with pytest.raises(ValueError, match=r"one number or \(B,\)"):
        process.alpha(t[:, None])


def test_configuration_and_bad_input():
    process = PerElement(BANDS, INDEX, SHAPE)
    assert process_from_config(json.loads(json.dumps(process.config()))) == process
    with pytest.raises(ValueError, match="share one clock"):
        PerElement((VP(), Cosine()), (0, 1), (2,))
    with pytest.raises(ValueError, match="does not fit"):
        PerElement(BANDS, (0, 1), SHAPE)
    with pytest.raises(ValueError, match="bands 0 to 2"):
        PerElement(BANDS, (0, 1, 2, 3, 0, 0), SHAPE)
    with pytest.raises(ValueError, match="at least one"):
        PerElement((), (), ())


@pytest.mark.parametrize("name", solver_names())
def test_equal_bands_give_the_scalar_plans_samples(name, noise):
    process = PerElement((VP(), VP()), (0, 1, 0, 1, 1, 0), SHAPE)
    made, scalar = plan(process, name, 6), plan(VP(), name, 6)
    assert made.nfe == scalar.nfe and made.stochastic == scalar.stochastic
    x = made.run(Mixture(process), noise, seed=3, dtype=F64)
    y = scalar.run(Mixture(VP()), noise, seed=3, dtype=F64)
    torch.testing.assert_close(x.samples, y.samples, rtol=1e-9, atol=1e-9)
    assert x.nfe == y.nfe


@pytest.mark.parametrize("name", ["ddim", "dpmpp-3m", "unipc-3", "ab-4", "deis-3", "ddpm"])
@pytest.mark.parametrize("predicts", ["x0", "eps"])
def test_each_band_of_independent_elements_ends_where_its_scalar_run_does(name, predicts, noise):
    """With one component the elements do not see each other, so each is a scalar run on the same grid of times."""
    process = PerElement(BANDS, INDEX, SHAPE)
    times = plan(process, name, 9, "log-snr").times
    together = plan(process, name, timesteps=times)(Mixture(process, predicts, 1), noise, seed=4, dtype=F64)
    for band, scalar in enumerate(BANDS):
        own = plan(scalar, name, timesteps=times)(Mixture(scalar, predicts, 1), noise, seed=4, dtype=F64)
        elements = torch.tensor([b == band for b in INDEX])
        torch.testing.assert_close(together.flatten(1)[:, elements], own.flatten(1)[:, elements], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("ddim", 1),
        ("dpmpp-2m", 2),
        pytest.param("ab-3", 3, marks=pytest.mark.slow),
        pytest.param("dpm-solver-2", 2, marks=pytest.mark.slow),
        pytest.param("dpm-solver-3", 2, marks=pytest.mark.slow),
    ],
)
def test_orders_under_bands_that_couple(name, order, noise):
    """A single-step solver of order 3 takes the clock's times for its own, which costs an order."""
    process = PerElement(BANDS, INDEX, SHAPE)
    model = Mixture(process)
    exact = plan(process, "ab-5", timesteps=grid(process, 500))(model, noise, dtype=F64)
    errors = []
    for n in (96, 192):
        x = plan(process, name, timesteps=grid(process, n))(model, noise, dtype=F64)
        errors.append(float((x - exact).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("process", [Flow(), Cosine(t_max=1.0)], ids=["flow", "cosine"])
@pytest.mark.parametrize("end", ["zero", "min"])
@pytest.mark.parametrize("name", ["ddim", "dpmpp-3m", "heun", "ddpm", "vab-3", "unipc-3"])
def test_finite_from_pure_noise_to_clean(process, end, name, noise):
    bands = PerElement((process, Flow() if isinstance(process, Flow) else Cosine(s=0.1, t_max=1.0)), COARSE, SHAPE)
    for steps in (1, 2, 5):
        x = plan(bands, name, steps, "uniform", end=end)(Mixture(bands), noise, dtype=F64)
        assert bool(torch.isfinite(x).all())


def test_saved_and_printed(tmp_path, noise):
    process = PerElement(BANDS, INDEX, SHAPE)
    made = plan(process, "ddpm", 5)
    made.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == made and "3 bands" in str(loaded)
    model = Mixture(process)
    assert torch.equal(made(model, noise, dtype=F64), loaded(model, noise, dtype=F64))
    text = json.loads(made.to_json())
    text["spread"]["index"][0] = 7
    with pytest.raises(ValueError, match="do not fit"):
        Plan.from_json(json.dumps(text))


def test_a_start_in_the_middle_scales_each_element(noise):
    process = PerElement(BANDS, INDEX, SHAPE)
    made = plan(process, "ddim", 8, strength=0.5)
    data = torch.linspace(-1, 1, 6, dtype=F64).reshape(1, *SHAPE).expand(5, *SHAPE)
    seen = made.run(Mixture(process), noise, init=data, dtype=F64, trajectory=True).trajectory[0]
    t = torch.tensor(made.times[0], dtype=F64)
    torch.testing.assert_close(seen, process.alpha(t) * data + process.sigma(t) * noise)


def test_callback_and_answers_that_are_not_finite(noise):
    process = PerElement(BANDS, INDEX, SHAPE)
    seen = []
    plan(process, "heun", 4)(Mixture(process), noise, callback=lambda n, t, x, p: seen.append((n, t)))
    assert [n for n, _ in seen] == list(range(1, len(seen) + 1))

    class Broken(Mixture):
        def forward(self, x, t, **condition):
            value = super().forward(x, t)
            value.value[0, 0, 0] = math.nan if float(t) < 0.5 else 0.0
            return value

    with pytest.raises(ValueError, match="not finite at evaluation"):
        plan(process, "ddim", 6)(Broken(process), noise)


def test_programs_that_differ_and_live_solvers_are_refused():
    process = PerElement((Cosine(t_max=0.9), Cosine(s=0.1, t_max=0.9)), (0, 1), (2,))

    def uneven(trace, process, times):
        x = trace.start()
        if process.sigma(0.01) > 0.05:
            x = trace.keep(x * 2.0)
        return x * 1.0 + trace.evaluate(x, times[0]).x0

    with pytest.raises(ValueError, match="different things"):
        plan(process, uneven, 3)
    with pytest.raises(ValueError, match="one noise level a step"):
        plan(process, "rk-adaptive")


def test_shortest_path_bands_too(noise):
    process = ShortestPath((0.1, 1.0, 30.0), INDEX, SHAPE)
    x = plan(process, "dpmpp-3m", 6, "uniform")(Mixture(process), noise)
    assert bool(torch.isfinite(x).all())


def test_files_of_the_earlier_format_load(noise):
    """A clock's plan and one plan per band, as `fewstep-banded-plan-1` held them."""
    process = PerElement(BANDS, INDEX, SHAPE)
    made = plan(process, "dpmpp-2m", 5)
    parts = [json.loads(made.band(k).to_json()) for k in range(3)]
    clock = parts[0] | {"process": process.config()}
    old = {"format": "fewstep-banded-plan-1", "clock": clock, "parts": parts, "index": INDEX, "shape": SHAPE}
    loaded = Plan.from_json(json.dumps(old))
    assert loaded.process == process.config() and loaded.spread == made.spread
    model = Mixture(process, "v")
    torch.testing.assert_close(loaded(model, noise, dtype=F64), made(model, noise, dtype=F64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["ddim", "dpmpp-3m", "unipc-3", "heun", "ddpm", "sa-solver", "pndm"])
@pytest.mark.parametrize("predicts", ["x0", "v"])
def test_every_executor_gives_the_runs_samples(name, predicts, noise):
    process = PerElement(BANDS, INDEX, SHAPE)
    model, made = Mixture(process, predicts), plan(process, name, 6)
    wanted = made(model, noise, seed=5, dtype=F64)

    def close(found):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)

    close(run_parallel(made, model, noise, 4, 0.0, seed=5, dtype=F64).samples)
    other = plan(process, "ddim", 3)
    mixed = run_mixed([Request(made, noise, seed=5), Request(other, noise)], model, dtype=F64)
    close(mixed[0])
    torch.testing.assert_close(mixed[1], other(model, noise, dtype=F64), rtol=0, atol=1e-12)
    close(checkpointed(made, model, noise, seed=5))
    close(Compiled(made, model, step)(noise, seed=5, dtype=F64))
    table = made.table
    times, weights, conversions = table.numbers(predicts, torch.device("cpu"), F64)
    draws = max((d for stage in table.stages for d, _ in stage.draws), default=0)
    noises = [Noise(5).normal(k + 1, tuple(noise.shape), "cpu", F64) for k in range(draws)]
    x, _ = begin_run(made, model, noise, None, F64, {})
    close(unrolled(table.structure, model, x, times, weights, conversions, noises, {}))
    for k in range(3):  # operation by operation, each band alone
        elements = torch.tensor([b == k for b in INDEX]).view(SHAPE)
        answers = iter(made.run(model, noise, seed=5, dtype=F64, trajectory=True).trajectory)
        band = {0: x}
        for _ in play(
            made.band(k).ops,
            band,
            lambda op, own, answers=answers: (predicts, model(next(answers), torch.tensor(op.t, dtype=F64)).value),
            lambda op: noises[op.draw - 1],
        ):
            pass
        torch.testing.assert_close(band[made.band(k).result][:, elements], wanted[:, elements], rtol=0, atol=1e-12)


def test_gradients_flow_through_bands(noise):
    process = PerElement(BANDS, INDEX, SHAPE)
    model, made = Mixture(process), plan(process, "dpmpp-2m", 4)
    x = noise.clone().requires_grad_()
    (slope,) = torch.autograd.grad(checkpointed(made, model, x).square().sum(), x)
    h = 1e-5 * torch.ones_like(noise)
    up, down = (made(model, noise + e, dtype=F64).square().sum() for e in (h, -h))
    assert float((up - down) / 2e-5) == pytest.approx(float(slope.sum()), rel=1e-6)


def test_rewrites_serve_bands_or_refuse(noise):
    process = PerElement(BANDS, INDEX, SHAPE)
    model, made = Mixture(process), plan(process, "dpmpp-2m", 6)
    x = made(model, noise, dtype=F64)
    for rewritten in (
        compensate(made, [0.5] * len(updates(made))),
        reuse(made, [3]),
        align(made, [op.t * 0.99 for op in made.evaluations]),
    ):
        changed = rewritten(model, noise, dtype=F64)
        assert float((changed - x).abs().max()) > 1e-4
    # What a rewrite does in one band is what it does to that band's plan.
    one = PerElement((VP(), VP()), (0, 1, 0, 1, 1, 0), SHAPE)
    twice, scalar = plan(one, "dpmpp-2m", 6), plan(VP(), "dpmpp-2m", 6)
    for rewrite in (lambda p: compensate(p, [0.5] * len(updates(p))), lambda p: reuse(p, [3])):
        torch.testing.assert_close(
            rewrite(twice)(Mixture(one), noise, dtype=F64), rewrite(scalar)(Mixture(VP()), noise, dtype=F64)
        )
    for refuse in (lambda p: heavy_ball(p, 0.5), skip, time_shift):
        with pytest.raises(ValueError, match="one noise level"):
            refuse(made)
    stochastic = plan(process, "ddpm", 4)
    source = BrownianNoise(stochastic, 3)
    assert bool(torch.isfinite(stochastic(model, noise, dtype=F64, source=source)).all())


def test_a_plans_check_reads_its_first_band():
    process = PerElement(BANDS, INDEX, SHAPE)
    assert plan(process, "dpmpp-2m", 6).check() == plan(process, "dpmpp-2m", 6).band(0).check()
    assert plan(process, "dpmpp-2m", 6).check().order == pytest.approx(2, abs=0.2)
