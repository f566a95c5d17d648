"""Ambient: the noisy sample's pair has the clean pair's conditional means, on the closed-form mixture."""

from __future__ import annotations

import pytest
import torch
from sampled import sampled

from fewstep.core.methods import find
from fewstep.core.prediction import expand
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import VE
from fewstep.processes.vp import VP
from fewstep.training.ambient import Ambient, MixedQuality, ambient_pair
from fewstep.training.fit import fit
from fewstep.training.noise_levels import NoiseLevels
from fewstep.training.objective import Objective

F64 = torch.float64


def pairs(model, n, t, level, seed=0):
    """Noisy observations of exact samples, made into pairs at one time."""
    generator = torch.Generator().manual_seed(seed)
    x0 = model.sample(n, seed)
    y = x0 + level * torch.randn(x0.shape, generator=generator, dtype=F64)
    z = torch.randn(x0.shape, generator=generator, dtype=F64)
    time, levels = torch.full((n,), t, dtype=F64), torch.full((n,), level, dtype=F64)
    return y, z, time, *ambient_pair(model.process, y, z, time, levels)


@sampled("process, share", [Flow(), VP(), VE()], [0.3, 0.8])
def test_the_pair_makes_the_state_and_is_unbiased_at_every_state(make_mixture, process, share):
    """Any function of x_t is uncorrelated with the pair's deviation from E[x0 | x_t] and E[eps | x_t]: that is what
    makes those the minimisers, whatever the weight and the kind of prediction."""
    model, level = make_mixture(process), 0.4
    t = process.time(-float(torch.tensor(level / share).log()))
    y, z, time, x0, eps, rho = pairs(model, 400_000, t, level)
    assert torch.allclose(rho, torch.full_like(rho, 1 - share**2))
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = alpha * x0 + sigma * eps
    assert torch.allclose(x, alpha * y + sigma * expand(rho.sqrt(), z) * z)
    truth = model(x, time)
    scaled = x / x.std()
    for ours, exact in ((x0, truth.x0), (eps, truth.eps)):
        residual = ours - exact
        spread = residual.std() / len(x) ** 0.5
        for probe in (torch.ones_like(x), scaled, scaled.flip(1), scaled**2 - 1, torch.sin(2 * scaled)):
            assert ((residual * probe).mean(0).abs() < 5 * spread * probe.square().mean(0).sqrt()).all()


def test_the_ambient_loss_is_that_of_predicting_the_observation(make_mixture):
    """rho^2 |x0hat - x0*|^2 = |rho x0hat + (1 - rho) x_t / alpha - y|^2, whatever x0hat is."""
    process = VP()
    model = make_mixture(process)
    y, z, time, x0, eps, rho = pairs(model, 50, 0.4, 0.3)
    alpha, sigma = process.alpha(0.4), process.sigma(0.4)
    x, guess = alpha * x0 + sigma * eps, torch.randn(50, 2, dtype=F64)
    r = rho[:, None]
    assert torch.allclose(r**2 * (guess - x0) ** 2, (r * guess + (1 - r) * x / alpha - y) ** 2)


def test_the_state_has_the_law_of_a_noised_clean_sample(make_mixture):
    model = make_mixture(Flow())
    *_, x0, eps, _ = pairs(model, 200_000, 0.5, 0.7)
    x = 0.5 * x0 + 0.5 * eps
    clean = 0.5 * model.sample(200_000, 9) + 0.5 * torch.randn(200_000, 2, dtype=F64)
    assert torch.allclose(x.mean(0), clean.mean(0), atol=0.01)
    assert torch.allclose(torch.cov(x.T), torch.cov(clean.T), atol=0.01)
    assert torch.allclose((x**4).mean(0), (clean**4).mean(0), rtol=0.03)


def test_clean_samples_are_left_alone_and_too_noisy_ones_have_no_say():
    y, z = torch.randn(2, 4, 3)
    t = torch.tensor([0.001, 0.5, 1.0, 0.2], dtype=F64)
    x0, eps, rho = ambient_pair(Flow(), y, z, t, torch.zeros(4))
    assert torch.equal(x0, y) and torch.equal(eps, z) and rho.tolist() == [1, 1, 1, 1]
    level = torch.tensor([2.0, 2.0, 2.0, 0.25])  # sigma / alpha: 0.001, 1, infinite, 0.25
    x0, eps, rho = ambient_pair(Flow(), y, z, t, level)
    assert rho.tolist()[:3] == [0, 0, 1] and rho[3] == 0
    assert torch.isfinite(x0).all() and torch.isfinite(eps).all()
    assert torch.equal(x0[2], y[2]) and torch.equal(eps[2], z[2])  # at pure noise nothing of y is left


def make(process=None, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NetworkDenoiser(MLP(width=16, depth=1), process or Flow(), shape=(2,), **options)


@pytest.mark.parametrize(
    "levels", [NoiseLevels(Flow()), NoiseLevels(VE(), "log-normal", -0.5, 1.2)], ids=["flow", "ve"]
)
def test_times_are_those_of_the_distribution_cut_off_at_the_level(levels):
    ambient = Ambient(Objective(make(levels.process)), levels)
    u = torch.linspace(0.0005, 0.9995, 1000, dtype=F64)
    level = torch.full((1000,), 0.6)
    process = levels.process
    t = ambient.lifted(levels.quantile(u), level)
    noise = (-process.log_snr(t)).exp()
    assert noise.min() >= 0.6 * (1 - 1e-3)
    every = (-process.log_snr(levels.quantile(torch.linspace(0.00005, 0.99995, 10000, dtype=F64)))).exp()
    cut = every[every > 0.6]
    wanted = cut.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=F64))
    assert torch.allclose(noise.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=F64)), wanted, rtol=0.02)
    assert torch.equal(ambient.lifted(t, torch.zeros(1000)), t)


@pytest.mark.parametrize("predicts", ["eps", "x0", "velocity"])
def test_on_clean_samples_it_is_the_objective(predicts):
    assert find("ambient", "training") is Ambient
    denoiser = make(predicts=predicts)
    torch.nn.init.normal_(denoiser.network.last.weight, generator=torch.Generator().manual_seed(1))
    x0, eps = torch.randn(2, 6, 2)
    t = torch.rand(6, dtype=F64)
    plain = Objective(denoiser)
    assert torch.equal(Ambient(plain)(x0, eps, t, {"noise_level": torch.zeros(6)}), plain(x0, eps, t, {}))
    far = Ambient(plain)(x0, eps, t, {"noise_level": torch.full((6,), 1e6)})  # further than the clock goes
    assert torch.isfinite(far).all()


def test_mixed_quality_data():
    clean = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    data = MixedQuality.degrade(clean, 0.25, 0.5, seed=1, label=torch.arange(40))
    assert (data.level == 0).sum() == 10 and torch.equal(data.samples[:10], clean[:10])
    assert float((data.samples - clean)[10:].std()) == pytest.approx(0.5, abs=0.08)
    x0, condition = data(200, torch.Generator().manual_seed(2))
    assert torch.equal(x0, data.samples[condition["label"]])
    assert torch.equal(condition["noise_level"], data.level[condition["label"]])
    with pytest.raises(ValueError, match="one standard deviation"):
        MixedQuality(clean, torch.ones(39), {})
    with pytest.raises(ValueError, match="share must be 0 to 1"):
        MixedQuality.degrade(clean, 1.5, 0.5)


def test_it_trains():
    clean = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    denoiser, losses = make(predicts="x0"), []
    fit(
        denoiser,
        MixedQuality.degrade(clean, 0.3, 0.4),
        objective=Ambient(Objective(denoiser)),
        steps=60,
        batch=64,
        lr=1e-2,
        watch=lambda step, loss: losses.append(float(loss.mean())),
    )
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
