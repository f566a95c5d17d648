"""Noise levels by element: the same as scalar plans where they must be, and of the solvers' orders.

Methods: per-element.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fewstep.core.banded import Banded
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.prediction import Prediction
from fewstep.core.process import process_from_config
from fewstep.processes.cosine import Cosine
from fewstep.processes.flow import Flow
from fewstep.processes.per_element import PerElement
from fewstep.processes.shortest_path import ShortestPath
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan, solver_names

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
        inner = self.means + alpha * self.variances / total * y if self.predicts == "x0" else sigma / total * y
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
    ("name", "order"), [("ddim", 1), ("dpmpp-2m", 2), ("ab-3", 3), ("dpm-solver-2", 2), ("dpm-solver-3", 2)]
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
    assert isinstance(loaded, Banded) and loaded.nfe == made.nfe and "3 bands" in str(loaded)
    model = Mixture(process)
    assert torch.equal(made(model, noise, dtype=F64), loaded(model, noise, dtype=F64))
    with pytest.raises(ValueError, match="no table"):
        _ = made.table
    text = json.loads(made.to_json())
    text["index"][0] = 7
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
