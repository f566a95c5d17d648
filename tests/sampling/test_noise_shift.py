"""noise-shift: the reading of noise levels along a run, where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.noise_shift import exact_reader, noise_shift


def test_a_reader_that_knows_the_noise_level_finds_what_was_put_in(make_mixture):
    """States of a run that starts with twice the noise show it, in a reader by their size."""
    process = EDM()
    model = make_mixture(process, (64,))
    made = plan(process, "ddim", timesteps=[40.0, 20.0, 0.0])

    def reader(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return -0.5 * x.square().mean(1).log()

    found = noise_shift(model, made, 400, reader, torch.zeros(400, 64), seed=1)
    assert found.times == (40.0, 20.0)
    assert found.true == pytest.approx((0.0, 0.0), abs=0.02) and found.shift[0] == pytest.approx(0.0, abs=0.02)
    doubled = noise_shift(model, made, 400, lambda x, t: reader(2 * x, t), torch.zeros(400, 64), seed=1)
    assert doubled.shift[0] - found.shift[0] == pytest.approx(-math.log(2))
    assert doubled.value == pytest.approx(found.value)  # of both at once, which leaves their difference


def test_the_first_state_of_a_run_is_true_noised_data(make_mixture):
    model = make_mixture(VP(), (8,))
    found = noise_shift(model, plan(VP(), "ddpm", 6), 300)
    assert abs(found.shift[0] - found.true[0]) < 0.3 and len(found.times) == len(found.shift) == 6
    mean = sum(abs(a - b) for a, b in zip(found.shift, found.true, strict=True)) / 6
    assert found.value == pytest.approx(mean)
    states = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide, narrow = (exact_reader(model)(k * states, torch.tensor(0.5)).mean() for k in (1.5, 0.5))
    assert wide < narrow  # the mixture is narrower than the noise: what is wide is noisy


def test_bad_input(make_mixture):
    model, made = make_mixture(VP()), plan(VP(), "ddim", 2)
    with pytest.raises(ValueError, match="n must be a whole number of at least 2"):
        noise_shift(model, made, 1)
    with pytest.raises(ValueError, match="only a Gaussian mixture tells noise levels by itself"):
        noise_shift(NetworkDenoiser(MLP((2,)), VP(), "v", (2,)), made)
    with pytest.raises(ValueError, match=r"data must be \(5, 2\)"):
        noise_shift(model, made, 5, data=torch.zeros(4, 2))
