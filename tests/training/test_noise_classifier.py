"""noise-classifier: the learned posterior over noise levels beside the exact one, on vectors and on pictures."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.training.noise_classifier import NoiseClassifier, exact_levels, noise_times, train_noise_classifier

F64 = torch.float64


def two_modes(process, weight: float = 0.3, d: int = 2):
    """Two narrow modes that meet at noise of order one, of unequal weight."""
    means = torch.zeros(2, d)
    means[:, 0] = torch.tensor([-1.0, 1.0])
    return GaussianMixture(torch.tensor([weight, 1 - weight]), means, 0.15**2, process)


def test_exact_levels_are_bayes_rule(make_mixture):
    model = make_mixture(VP(), (3,))
    times = noise_times(VP(), 5, 0.1, 3.0)
    y = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    # the law of y at a level is the mixture's with the covariance C + r^2
    wanted = []
    for t in times:
        ratio = VP().sigma(t) / VP().alpha(t)
        still = EDM()
        same = make_mixture(still, (3,))
        wanted.append(same.log_likelihood(y, torch.tensor(ratio, dtype=F64)))
    torch.testing.assert_close(exact_levels(model, times)(y), torch.stack(wanted, 1))


def test_noise_times_are_geometric():
    times = noise_times(VP(), 5, 0.1, 2.0)
    ratios = [VP().sigma(t) / VP().alpha(t) for t in times]
    assert ratios == pytest.approx([2.0 * (0.1 / 2.0) ** (k / 4) for k in range(5)])


def test_the_classifier_learns_the_posterior(tmp_path):
    model = two_modes(VP())
    times = noise_times(VP(), 8, 0.1, 2.0)
    made = train_noise_classifier(VP(), model.sample(4000, 1), times, steps=500)
    level = torch.arange(8).repeat(100)
    ratio = torch.tensor([VP().sigma(t) / VP().alpha(t) for t in times])[level]
    generator = torch.Generator().manual_seed(2)
    y = model.sample(800, 2) + ratio[:, None] * torch.randn(800, 2, generator=generator)
    ours, exact = torch.log_softmax(made(y).double(), 1), torch.log_softmax(exact_levels(model, times)(y), 1)
    divergence = float((exact.exp() * (exact - ours)).sum(1).mean())
    prior = float((exact.exp() * (exact + math.log(8))).sum(1).mean())
    assert divergence < 0.1 * prior
    snr = torch.tensor([VP().log_snr(t) for t in times], dtype=F64)
    told = made.log_snr(y * VP().alpha(times[3]), torch.tensor(times[3]))
    torch.testing.assert_close(told, ours.exp() @ snr, rtol=1e-4, atol=1e-4)
    read = NoiseClassifier.load(made.save(tmp_path / "levels.safetensors"))
    assert torch.equal(read(y), made(y)) and read.times == made.times and read.process == VP()
    again = train_noise_classifier(VP(), model.sample(4000, 1), times, steps=3)
    assert torch.equal(train_noise_classifier(VP(), model.sample(4000, 1), times, steps=3)(y), again(y))


def test_images_are_classified(tmp_path):
    from fewstep.data.digits import load

    process = EDM()
    times = noise_times(process, 6, 0.1, 3.0)
    made = train_noise_classifier(process, load("train")[0], times, steps=150, batch=64, width=16, rate=1e-2)
    images, generator = load("validation")[0][:60], torch.Generator().manual_seed(1)
    level = torch.arange(60) % 6
    noisy = images + torch.tensor(times)[level].reshape(-1, 1, 1, 1) * torch.randn(60, 1, 8, 8, generator=generator)
    logits = made(noisy)
    assert logits.shape == (60, 6)
    assert float((logits.argmax(1) - level).abs().double().mean()) < 0.5  # levels of images are all but certain
    read = NoiseClassifier.load(made.save(tmp_path / "images.safetensors"))
    assert torch.equal(read(noisy), logits)


def test_bad_input(tmp_path):
    times = noise_times(VP(), 4, 0.1, 2.0)
    with pytest.raises(ValueError, match="leaves the process"):
        noise_times(VP(), 4, 0.1, 1e4)
    with pytest.raises(ValueError, match="times must be at least 2, falling"):
        NoiseClassifier(VP(), [0.1, 0.2], (2,))
    with pytest.raises(ValueError, match="a vector"):
        NoiseClassifier(VP(), times, (2, 3))
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="holds no noise classifier"):
        NoiseClassifier.load(tmp_path / "x.safetensors")
