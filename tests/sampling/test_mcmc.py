"""denoising-mcmc: the chain's law, and its independence of the batch."""

from __future__ import annotations

import pytest
import torch

from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.mcmc import denoising_mcmc
from fewstep.training.noise_classifier import exact_levels, noise_times

F64 = torch.float64


def two_modes(process, weight: float = 0.3, d: int = 2):
    """Two narrow modes that meet at noise of order one, of unequal weight."""
    means = torch.zeros(2, d)
    means[:, 0] = torch.tensor([-1.0, 1.0])
    return GaussianMixture(torch.tensor([weight, 1 - weight]), means, 0.15**2, process)


@pytest.mark.parametrize(
    "process",
    [*(pytest.param(process, marks=pytest.mark.slow) for process in (VP(), EDM())), Flow()],
    ids=lambda p: p.name,
)
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


def test_bad_input():
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
