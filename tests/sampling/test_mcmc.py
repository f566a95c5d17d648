"""denoising-mcmc and noise-classifier: the chain's law, its independence of the batch, the learned posterior."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.mcmc import denoising_mcmc
from fewstep.training.noise_classifier import NoiseClassifier, exact_levels, noise_times, train_noise_classifier

F64 = torch.float64


def two_modes(process, weight: float = 0.3, d: int = 2):
    """Two narrow modes that meet at noise of order one, of unequal weight."""
    means = torch.zeros(2, d)
    means[:, 0] = torch.tensor([-1.0, 1.0])
    return GaussianMixture(torch.tensor([weight, 1 - weight]), means, 0.15**2, process)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: p.name)
def test_the_chain_has_the_mixtures_law(process):
    model = two_modes(process)
    times = noise_times(process, 16, 0.05, 2.0)
    found = denoising_mcmc(
        model, exact_levels(model, times), 256, 8, times=times, steps=10, size=0.2, burn_in=40, dtype=F64, seed=3
    )
    x = found.samples.reshape(-1, 2)
    assert found.samples.shape == (256, 8, 2) and found.levels.shape == (256, 8)
    right = x[:, 0] > 0
    assert float(right.double().mean()) == pytest.approx(0.7, abs=0.06)
    assert float(x[right].mean(0)[0]) == pytest.approx(1.0, abs=0.03)
    for part in (x[right], x[~right]):
        assert float(part[:, 1].std()) == pytest.approx(0.15, abs=0.02)
    moved = (found.samples[:, 1:, 0] > 0) != (found.samples[:, :-1, 0] > 0)
    assert float(moved.double().mean()) > 0.05  # chains do change their mode
    # uniform over the levels beforehand, so uniform on the average of the chain
    share = torch.bincount(found.levels.flatten(), minlength=16) / found.levels.numel()
    assert float((share - 1 / 16).abs().max()) < 0.04


def test_a_chain_does_not_depend_on_its_batch():
    model = two_modes(EDM())
    times = noise_times(EDM(), 8, 0.05, 2.0)
    for solver in ("dpmpp-2m", "dpmpp-2m-sde"):
        settings = {"per_chain": 3, "times": times, "solver": solver, "dtype": F64, "seed": 5}
        together = denoising_mcmc(model, exact_levels(model, times), 6, **settings)
        for i in (0, 4):
            alone = denoising_mcmc(model, exact_levels(model, times), 1, first=i, **settings)
            torch.testing.assert_close(together.samples[i : i + 1], alone.samples, rtol=1e-8, atol=1e-9)
            assert torch.equal(together.levels[i : i + 1], alone.levels)
    other = denoising_mcmc(model, exact_levels(model, times), 6, **(settings | {"seed": 6}))
    assert not torch.allclose(together.samples, other.samples)


def test_the_evaluations_are_counted():
    model = two_modes(VP())
    times = noise_times(VP(), 4, 0.05, 2.0)
    calls = []
    count = model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    found = denoising_mcmc(model, exact_levels(model, times), 5, 3, times=times, steps=4, langevin=2, burn_in=1)
    count.remove()
    assert found.nfe_per_sample == pytest.approx(sum(calls) / 15)
    # the first runs, 1 + 3 * 2 steps of the chain, and at most 4 evaluations to finish
    assert (4 + 7 + 3) / 3 <= found.nfe_per_sample <= (4 + 7 + 12) / 3


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
    model = two_modes(VP())
    times = noise_times(VP(), 4, 0.1, 2.0)
    logits = exact_levels(model, times)
    for options, message in (
        ({}, "say which levels"),
        ({"times": times, "size": 1.5}, r"size lies in \(0, 1\]"),
        ({"times": times, "langevin": 0}, "langevin must be at least 1, got 0"),
        ({"times": times, "solver": "dpm++2m"}, "did you mean 'dpmpp-2m'"),
        ({"times": times[:3]}, r"logits have shape \(2, 4\), not \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            denoising_mcmc(model, logits, 2, **options)
    with pytest.raises(ValueError, match="leaves the process"):
        noise_times(VP(), 4, 0.1, 1e4)
    with pytest.raises(ValueError, match="times must be at least 2, falling"):
        NoiseClassifier(VP(), [0.1, 0.2], (2,))
    with pytest.raises(ValueError, match="a vector"):
        NoiseClassifier(VP(), times, (2, 3))
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="holds no noise classifier"):
        NoiseClassifier.load(tmp_path / "x.safetensors")
