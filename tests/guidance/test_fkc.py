"""Feynman-Kac correctors against closed forms: powers, products and guided laws of Gaussian mixtures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.core.denoiser import Denoiser, Wrapper
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.guidance.power import Power
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64


class Composed(Wrapper):
    """Models and the weights of their eps."""

    def __init__(self, models: Sequence[Denoiser], betas: Sequence[float]):
        super().__init__(models[0])
        self.models, self.betas = list(models), tuple(betas)

    def terms(self, x: Tensor, t: Tensor, memory: Any, condition: Any) -> tuple[tuple[float, ...], list[Prediction]]:
        return self.betas, [model(x, t) for model in self.models]

    def forward(self, x: Tensor, t: Tensor, **condition: Any) -> Prediction:
        eps = sum(beta * model(x, t).eps for beta, model in zip(self.betas, self.models, strict=True))
        return Prediction(eps, "eps", x, t, self.process)


def two(process: Any) -> tuple[GaussianMixture, GaussianMixture]:
    means = torch.tensor([[-0.9, 0.2], [0.7, 0.4]], dtype=F64)
    narrow = GaussianMixture(torch.tensor([1.0, 2.0]), means, torch.tensor([0.2, 0.3]), process)
    return narrow, GaussianMixture(torch.ones(1), torch.tensor([[0.2, -0.1]]), 0.6, process)


def moments(x: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
    w = logs.flatten().softmax(0)
    x = x.flatten(0, 1)
    mean = w @ x
    return mean, ((x - mean).mT * w) @ (x - mean)


def law(exact: GaussianMixture) -> tuple[Tensor, Tensor]:
    x = exact.sample(200_000, seed=1)
    return x.mean(0), x.mT.cov()


def steered(model: Denoiser, steps: int, n: int = 64, **options: Any) -> tuple[Tensor, Tensor, float]:
    """Particles of n groups of 64, log weights that put the groups together, and the logarithm of the mean Z-hat."""
    plan = fs.plan(model.process, "dpmpp-2m-sde", steps=steps, **options)
    run = fs.steer(plan, "fkc", particles=64, keep=True).run(
        model, Noise(1).normal(0, (n, 2), dtype=F64), seed=1, dtype=F64
    )
    log_z, logs = run.report["log_normaliser"], run.report["log_weights"].log_softmax(1)
    return run.report["particles"], logs + log_z[:, None], float(log_z.logsumexp(0) - math.log(n))


def check(model: Denoiser, exact: GaussianMixture, log_z: float, steps: int, close: float, **options: Any) -> None:
    x, logs, found = steered(model, steps, **options)
    (mean, cov), (true_mean, true_cov) = moments(x, logs), law(exact)
    assert float((cov - true_cov).norm() / true_cov.norm()) < close, (cov, true_cov)
    assert float((mean - true_mean).norm()) < 0.2, (mean, true_mean)
    assert abs(found - log_z) < 0.4, (found, log_z)


def test_a_power_is_the_closed_form():
    model = two(EDM())[0]
    exact, log_z = model.power(2)
    check(Power(model, 2.0), exact, float(log_z), 60, 0.15, timesteps="karras")


def test_a_product_is_the_closed_form():
    a, b = two(VP())
    exact, log_z = a.times(b)
    check(Composed([a, b], [1.0, 1.0]), exact, float(log_z), 120, 0.05)


def test_guidance_is_the_closed_form():
    """The law p^2 / q of a mixture p and one Gaussian q is a mixture: to divide by q is to tilt the other way."""
    a, b = two(EDM())
    squared, log_square = a.power(2)
    mean = b.means[0].double()
    exact, log_tilt = squared.tilted(-torch.eye(2, dtype=F64) / 0.6, -mean / 0.6)
    log_z = float(log_square + log_tilt) + float(mean.square().sum()) / 1.2 + math.log(2 * math.pi * 0.6)
    check(Composed([a, b], [2.0, -1.0]), exact, log_z, 60, 0.1, timesteps="karras")


def test_one_gaussian_to_a_power_in_closed_form():
    """N(m, c)^beta is N(m, c / beta), and its integral is known; so is every step's law, and few particles do."""
    model = GaussianMixture(torch.ones(1), torch.tensor([[0.3, -0.2]]), 0.25, EDM())
    for beta in (0.5, 1.5):
        x, logs, found = steered(Power(model, beta), 60, timesteps="karras")
        mean, cov = moments(x, logs)
        torch.testing.assert_close(cov, torch.eye(2, dtype=F64) * 0.25 / beta, atol=0.025 / beta, rtol=0)
        torch.testing.assert_close(mean, model.means[0], atol=0.05 / beta, rtol=0)
        exact = (1 - beta) * math.log(2 * math.pi * 0.25) - math.log(beta)
        assert abs(found - exact) < 0.15


def test_from_pure_noise_where_the_weights_sum_to_one():
    a, b = two(Flow())
    x, logs, found = steered(Composed([a, b], [2.0, -1.0]), 40)
    assert bool(x.isfinite().all()) and math.isfinite(found) and abs(found) < 3
    for beta, steps in ((2.0, 20), (0.5, 20)):
        with pytest.raises(ValueError, match=f"weights that sum to {beta:g} have no normaliser at pure noise"):
            steered(Power(a, beta), steps)


def test_weights_of_one_model_alone_are_the_plan_bit_for_bit():
    model = two(VP())[0]
    plan, noise = fs.plan(VP(), "dpmpp-2m-sde", steps=6), Noise(1).normal(0, (3, 2), dtype=F64)
    run = fs.steer(plan, "fkc", particles=1).run(Power(model, 1.0), noise, seed=1, dtype=F64)
    assert torch.equal(run.samples, plan(model, noise, seed=1, dtype=F64))
    assert float(run.report["log_normaliser"].abs().max()) < 1e-12 and run.report["rows"] == 6
    both = fs.steer(plan, "fkc", particles=4).run(Composed([model, model], [3.0, -2.0]), noise, seed=1, dtype=F64)
    assert float(both.report["log_normaliser"].abs().max()) < 1e-9  # the two agree everywhere


def test_bad_input():
    a, _ = two(EDM())
    plan, noise = fs.plan(EDM(), "dpmpp-2m-sde", steps=20, timesteps="karras"), torch.ones(1, 2)

    class Changing(Composed):
        calls = 0

        def terms(self, x: Tensor, t: Tensor, memory: Any, condition: Any) -> Any:
            self.calls += 1
            return (float(self.calls), 1.0 - self.calls), [self.models[0](x, t)] * 2

    for model, message in (
        (a, "fkc corrects a composition of models, and GaussianMixture is none: take a model guided by 'cfg'"),
        (Composed([a, a], [1.0, -1.0]), "fkc needs weights with a sum above 0, since they start at noise of it, got 0"),
        (Changing([a], [1.0]), "fkc needs weights that stay the same during a run"),
    ):
        with pytest.raises(ValueError, match=message):
            fs.steer(plan, "fkc", particles=2).run(model, noise)
    with pytest.raises(ValueError, match="the weights collapsed at evaluation [0-9]+: take more steps, or ddpm"):
        steered(Power(two(EDM())[0], 2.0), 14, timesteps="karras")
    with pytest.raises(ValueError, match="that fall from one evaluation to the next; 'rising' goes back"):
        fs.steer(fs.plan(EDM(), rising, timesteps=[80.0, 2.0, 1.0, 0.0]), "fkc")
    with pytest.raises(ValueError, match="the particle of the highest reward, and 'fkc' has none here"):
        fs.steer(plan, "fkc", choose="best")


def rising(trace, process, times):
    """A plan that goes back to a higher noise level once."""
    x = trace.start()
    for t in (80.0, 1.0, 2.0):
        x = trace.evaluate(x, t).x0 + trace.noise()
    return x
