"""CDIM's energies have the law that it holds them to, and its results the measurement."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, gaussian, half, mixture, normal, wide

import fewstep as fs
from fewstep.operators.noise import Gaussian
from fewstep.restoration.cdim import CDIM, reaching
from fewstep.restoration.measured import Problem

F64 = torch.float64
N = 200_000


@pytest.mark.parametrize("noise", [0.0, 0.4])
@pytest.mark.parametrize(("alpha", "sigma"), [(0.1, 0.995), (0.6, 0.8), (0.98, 0.2)])
def test_energies_have_the_mean_and_the_deviation_that_are_asked_of_them(alpha, sigma, noise):
    a, x0 = wide(), normal(1, D, seed=8).expand(N, -1)
    y = a(x0) + noise * normal(N, 3, seed=9)
    found = (a(alpha * x0 + sigma * normal(N, D, seed=10)) - y).square().sum(1)
    weight, law = CDIM()._weighed(Problem(gaussian(), a, Gaussian(noise)), y, x0)
    assert weight == 1.0
    off = (found - law.mean(alpha, sigma)) / N**0.5
    # The deviation is known from y, so it is that of the whole in the mean: chi-square over its number of draws.
    expected = law.deviation(alpha, sigma).square().mean()
    assert abs(float(off.sum())) < 4 * float(expected.sqrt())
    assert float(N * off.square().sum() / N / expected) == pytest.approx(1.0, abs=0.05)


def test_a_step_goes_exactly_as_far_as_it_must():
    r, image = normal(4, 3, seed=1), normal(4, 3, seed=2)
    image = image * (r * image).sum(1, keepdim=True).sign()
    now = r.square().sum(1)
    least = (r - ((r * image).sum(1) / image.square().sum(1))[:, None] * image).square().sum(1)
    bound = torch.stack([now[0] * 1.1, (now[1] + least[1]) / 2, least[2] * 0.5, now[3] * 0.999])
    h = reaching(r, image, bound)
    left = (r - h[:, None] * image).square().sum(1)
    assert float(h[0]) == 0 and float(left[1]) == pytest.approx(float(bound[1]))
    assert float(left[2]) == pytest.approx(float(least[2]))  # it cannot be reached: as near as the direction goes
    assert bool((h >= 0).all()) and bool((reaching(r, -image, bound) == 0).all())


@pytest.mark.parametrize("operator", [wide, half])
def test_without_noise_the_measurement_is_met_to_machine_precision(operator):
    model, a = mixture(), operator()
    y = a.measure(model.sample(4, seed=3))
    x = fs.restore(model, y, a, method="cdim", nfe=8, dtype=F64)
    assert float((a(x) - y).square().sum(1).max()) < 1e-12


def test_noisy_ones_end_within_the_bound():
    model, a = mixture(), wide()
    y = a.measure(model.sample(4, seed=3), noise=0.2)
    x = fs.restore(model, y, a, 0.2, method="cdim", nfe=8, dtype=F64)
    assert bool(((a(x) - y).square().sum(1) <= 3 * 0.04 + (2 * 3) ** 0.5 * 0.04 + 1e-6).all())


def test_counts_are_taken_by_pearsons_residuals():
    model, a = mixture(), half()
    law = fs.operators.Poisson(40.0, low=-4.0)
    y = a.measure(model.sample(4, seed=3), law)
    x = fs.restore(model, y, a, law, method="cdim", nfe=20, dtype=F64)
    whitened = law.whiten(a(x) - y, a(x))[:, a.holds]
    assert float(whitened.square().sum(1).max()) < 12
    with pytest.raises(ValueError, match="corrections must be at least 1"):
        CDIM(corrections=0)


def test_an_operator_without_a_spectrum_is_refused():
    big = fs.operators.Linear(lambda x: x[:, :1], (5000,))
    with pytest.raises(ValueError, match="needs the singular values"):
        CDIM().check(mixture(), big.fit((5000,)), Gaussian(0.1))
