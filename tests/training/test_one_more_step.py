"""one-more-step: the law of the start, what is learned, and the plan that begins from it."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.discrete import Discrete
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.ddim import ddim
from fewstep.sampling.sample import sample
from fewstep.training.one_more_step import OneMoreStep, train_one_more_step

F64 = torch.float64
SHORT = Discrete.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=F64)[:500].tolist())  # stops at alpha = 0.27


def gaussian(d: int = 6):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(d, d, generator=generator, dtype=F64) / 2
    return torch.randn(d, generator=generator, dtype=F64) + 1, root @ root.T + 0.01 * torch.eye(d, dtype=F64)


def law(step: OneMoreStep, shape, condition=None):
    """Mean and covariance of the start, which is affine in the noise."""
    d = torch.tensor(shape).prod()
    zero = step.start(SHORT, torch.zeros(1, *shape, dtype=F64), {k: v[:1] for k, v in (condition or {}).items()})
    basis = torch.eye(int(d), dtype=F64).reshape(-1, *shape)
    rows = {k: v[:1].expand(int(d)) for k, v in (condition or {}).items()}
    root = (step.start(SHORT, basis, rows) - zero).flatten(1)
    return zero.flatten(), root.T @ root


def wanted(mean, covariance):
    alpha, sigma = SHORT.alpha(SHORT.t_max), SHORT.sigma(SHORT.t_max)
    return alpha * mean, alpha**2 * covariance + sigma**2 * torch.eye(len(mean), dtype=F64)


def test_the_closed_form_has_the_exact_terminal_law():
    mean, covariance = gaussian()
    step = OneMoreStep.from_moments(mean.reshape(2, 3), covariance)
    for ours, exact in zip(law(step, (2, 3)), wanted(mean, covariance), strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-12, rtol=0)


def test_it_is_the_flow_of_gaussian_data():
    """From a later time of a schedule that goes on, the probability-flow ODE leads to the same state."""
    mean, covariance = gaussian()
    on = VP()
    model = GaussianMixture(torch.ones(1), mean.unsqueeze(0), covariance.unsqueeze(0), on)
    t = on.time(SHORT.log_snr(SHORT.t_max))  # both have alpha^2 + sigma^2 = 1
    noise = Noise(1).normal(0, (4, 6), "cpu", F64)
    alpha, sigma = on.alpha(1.0), on.sigma(1.0)
    values, vectors = torch.linalg.eigh(covariance)
    first = alpha * mean + (noise @ vectors * (alpha**2 * values + sigma**2).sqrt()) @ vectors.T
    times = [1 - (1 - t) * k / 400 for k in range(401)]
    there = plan(on, "dpmpp-3m", timesteps=times)(model, first / sigma, dtype=F64)
    step = OneMoreStep.from_moments(mean, covariance)
    torch.testing.assert_close(step.start(SHORT, noise), there, atol=1e-6, rtol=0)


def labelled(n: int = 900):
    """Three classes whose means and common covariance are known up to the draw."""
    generator = torch.Generator().manual_seed(3)
    label = torch.arange(n) % 3
    data = torch.randn(n, 2, 3, generator=generator) * 0.3 + label.reshape(-1, 1, 1) - 0.4
    return data, label


def test_training_finds_mean_and_covariance_of_each_class():
    data, label = labelled()
    step = train_one_more_step(data, {"label": label}, rank=6)
    left = torch.cat([data[label == k] - data[label == k].mean(0) for k in range(3)]).flatten(1).double()
    for k in range(3):
        mean, covariance = law(step, (2, 3), {"label": torch.tensor([k])})
        exact = wanted(data[label == k].double().mean(0).flatten(), left.T @ left / len(left))
        torch.testing.assert_close(mean, exact[0], atol=0.02, rtol=0)
        torch.testing.assert_close(covariance, exact[1], atol=1e-3, rtol=0)
    mean, covariance = law(step, (2, 3), {"label": torch.tensor([3])})  # no label: the law of them all
    exact = wanted(data.double().mean(0).flatten(), data.flatten(1).double().T.cov(correction=0))
    torch.testing.assert_close(mean, exact[0], atol=0.03, rtol=0)
    torch.testing.assert_close(covariance, exact[1], atol=3e-3, rtol=0)
    torch.testing.assert_close(law(step, (2, 3)), (mean, covariance))


def test_a_small_rank_keeps_the_largest_directions_and_the_trace():
    data = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 1.0, 0.3, 0.2, 0.1])
    step = train_one_more_step(data, rank=2, steps=20)
    covariance = law(step, (5,))[1]
    exact = wanted(torch.zeros(5, dtype=F64), data.double().T.cov(correction=0))[1]
    torch.testing.assert_close(covariance.trace(), exact.trace(), atol=1e-4, rtol=0)
    assert float((covariance - exact).abs().max()) < 0.07 * 0.1 + 0.01
    bare = train_one_more_step(data, rank=0, steps=20)  # the mean variance in every direction
    torch.testing.assert_close(law(bare, (5,))[1], torch.eye(5, dtype=F64) * exact.trace() / 5, atol=1e-4, rtol=0)


def test_a_plan_from_this_start_samples_the_gaussian():
    mean, covariance = gaussian()
    model = GaussianMixture(torch.ones(1), mean.unsqueeze(0), covariance.unsqueeze(0), SHORT)
    base = plan(SHORT, "dpmpp-3m", 60)
    made = OneMoreStep.from_moments(mean, covariance).plan(base, SHORT)
    x = sample(model, 4000, plan=made, seed=2, dtype=F64)
    plain = sample(model, 4000, plan=base, seed=2, dtype=F64)
    assert float((x.mean(0) - mean).norm()) < 0.1 < float((plain.mean(0) - mean).norm())
    assert float((x.T.cov() - covariance).norm() / covariance.norm()) < 0.1
    assert made.nfe == base.nfe and made.times == base.times and made.about["start"] == "one-more-step"
    noise = Noise(2).normal(0, (3, 6), "cpu", F64)
    torch.testing.assert_close(made(model, noise, dtype=F64), x[:3])
    assert "one-more-step" in str(made)


def test_files(tmp_path):
    data, label = labelled(90)
    step = train_one_more_step(data, {"label": label}, steps=5, rank=2)
    read = OneMoreStep.load(step.save(tmp_path / "step.safetensors"))
    noise = Noise(0).normal(0, (4, 2, 3))
    condition = {"label": torch.tensor([0, 1, 2, 3])}
    assert torch.equal(read.start(SHORT, noise, condition), step.start(SHORT, noise, condition))
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="holds no step"):
        OneMoreStep.load(tmp_path / "x.safetensors")


def test_bad_input():
    step = OneMoreStep.from_moments(*gaussian())
    with pytest.raises(ValueError, match="the step leads to t_max"):
        step.plan(plan(SHORT, ddim, timesteps=[300.0, 100.0, -1.0]), SHORT)
    with pytest.raises(ValueError, match="made for another process"):
        step.plan(plan(VP(), "ddim", 3), SHORT)
    with pytest.raises(ValueError, match=r"samples of shape \(6,\), got \(5,\)"):
        step.start(SHORT, torch.zeros(2, 5))
    with pytest.raises(ValueError, match="rank lies between 0 and 6"):
        OneMoreStep((2, 3), rank=7)
    with pytest.raises(ValueError, match="label must be 4 labels"):
        train_one_more_step(torch.zeros(4, 3), {"label": torch.zeros(3, dtype=torch.long)})
    made = step.plan(plan(SHORT, "ddim", 3), SHORT)
    with pytest.raises(ValueError, match="has no file"):
        made.to_json()
