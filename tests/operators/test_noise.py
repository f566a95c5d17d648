"""Laws of noise: draws that belong to a sample, densities that sum to 1, variances and residuals."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from fewstep.core.config import built, config
from fewstep.core.noise import Noise
from fewstep.operators.covariance import Applied
from fewstep.operators.mask import Identity
from fewstep.operators.noise import Gaussian, Poisson, PoissonGaussian, as_noise

F64 = torch.float64
LAWS = {
    "gaussian": Gaussian(0.3),
    "elements": Gaussian(torch.tensor([0.1, 0.5, 1.0])),
    "poisson": Poisson(20.0, low=-1.0),
    "camera": PoissonGaussian(0.05, 0.1, low=-1.0),
}
CLEAN = torch.tensor([-0.9, 0.0, 0.8], dtype=F64)


@pytest.mark.parametrize("name", LAWS)
def test_draws_belong_to_the_sample(name: str):
    law, clean = LAWS[name], CLEAN.expand(4, 3)
    y = law.draw(clean, Noise(3))
    assert torch.equal(law.draw(clean[:1], Noise(3, 2))[0], y[2]) and not torch.equal(y[0], y[1])
    assert law.draw(clean.float(), Noise(3)).dtype == torch.float32


@pytest.mark.parametrize("name", LAWS)
def test_moments_and_whitened_residuals(name: str):
    law, n = LAWS[name], 20000
    clean = CLEAN.expand(n, 3)
    y = law.draw(clean, Noise(1))
    variance = law.variance(clean)
    five = 5 / math.sqrt(n)  # standard errors
    assert bool(((y - clean).mean(0).abs() < five * variance[0].sqrt()).all())
    whitened = law.whiten(y - clean, clean)
    assert bool(((whitened.square().mean(0) - 1).abs() < 2.5 * five).all())


def test_counts_are_poissons():
    n = 4000
    for mean in (0.0, 0.3, 4.0, 60.0, 1e5):
        k = Poisson(mean or 1.0).draw(torch.full((n, 1), 1.0 if mean else 0.0, dtype=F64), Noise(2)) * (mean or 1.0)
        assert torch.allclose(k, k.round(), atol=1e-6)
        if not mean:
            assert float(k.abs().max()) == 0
            continue
        low, high = stats.poisson.interval(0.9, mean)
        inside = float(((k >= low) & (k <= high)).double().mean())
        wanted = stats.poisson.cdf(high, mean) - stats.poisson.cdf(low - 1, mean)
        assert abs(inside - wanted) < 5 * math.sqrt(0.1 / n)


def test_log_densities():
    clean = torch.tensor([[0.4, 2.0]], dtype=F64)
    counts = torch.arange(200.0, dtype=F64)
    y = torch.stack((counts / 10, torch.zeros(200, dtype=F64)), 1)
    total = Poisson(10.0).log_prob(y, clean.expand(200, 2)).exp().sum()
    assert float(total) == pytest.approx(math.exp(-20), rel=1e-9)  # the second element's probability of no count
    assert float(Poisson(10.0).log_prob(clean, clean)) == pytest.approx(stats.poisson.logpmf([4, 20], [4, 20]).sum())
    grid = torch.linspace(-2, 6, 4001, dtype=F64)[:, None]
    density = PoissonGaussian(0.5, 0.2).log_prob(grid, torch.full_like(grid, 0.8)).exp()
    assert float(torch.trapezoid(density, grid[:, 0])) == pytest.approx(1, abs=1e-6)
    wanted = sum(stats.poisson.pmf(k, 1.6) * stats.norm.pdf(1.1, 0.5 * k, 0.2) for k in range(40))
    assert float(PoissonGaussian(0.5, 0.2).log_prob(torch.tensor([[1.1]]), torch.tensor([[0.8]])).exp()) == (
        pytest.approx(wanted, rel=1e-5)
    )
    gaussian = Gaussian(torch.tensor([0.1, 0.5], dtype=F64)).log_prob(clean + 0.1, clean)
    assert float(gaussian) == pytest.approx(stats.norm.logpdf(0.1, 0, [0.1, 0.5]).sum())


def test_log_densities_are_differentiable_in_the_clean_values():
    clean = torch.tensor([[0.4, 2.0]], dtype=F64, requires_grad=True)
    for law in (Gaussian(0.3), Poisson(10.0), PoissonGaussian(0.5, 0.2)):
        y = torch.tensor([[0.5, 1.5]], dtype=F64)
        assert torch.autograd.gradcheck(lambda c, law=law, y=y: law.log_prob(y, c), clean)


def test_an_operator_measures_with_any_law_and_laws_are_saved():
    y = Identity().measure(CLEAN.expand(2, 3), noise=LAWS["poisson"], seed=4)
    assert torch.equal(y, LAWS["poisson"].draw(CLEAN.expand(2, 3), Noise(4)))
    for law in LAWS.values():
        beside: dict[str, object] = {}
        again = built(config(law, beside), beside)
        assert torch.equal(again.draw(CLEAN[None], Noise(0)), law.draw(CLEAN[None], Noise(0)))


def test_bad_input():
    with pytest.raises(ValueError, match="the noise is a standard deviation of at least 0, got -0.1"):
        Gaussian(-0.1)
    with pytest.raises(ValueError, match=r"noise of shape \(3,\) does not fit measurements of shape \(2,\)"):
        Identity().measure(torch.zeros(3, 2), torch.ones(3))
    with pytest.raises(ValueError, match="noise must be a standard deviation or a law of noise, got '0.1'"):
        as_noise("0.1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the peak of Poisson noise is a positive number"):
        Poisson(0)
    with pytest.raises(
        ValueError, match="whole counts of at least 0, .* peak 10 and low 0; got off a whole number by 0.4"
    ):
        Poisson(10).log_prob(torch.tensor([[0.04]]), torch.tensor([[0.1]]))
    with pytest.raises(ValueError, match="whole counts of at least 0, .*; got -1"):
        Poisson(10).log_prob(torch.tensor([[-0.1]]), torch.tensor([[0.1]]))
    with pytest.raises(ValueError, match="the read of a camera's noise is a positive number, got 0"):
        PoissonGaussian(0.1, 0)
    with pytest.raises(ValueError, match="has no deviation of each element"):
        Gaussian(Applied(lambda x: x, 1.0)).whiten(CLEAN, CLEAN)
