"""A noise level for every pixel: the scalar process where they agree, and the exact posterior where it is known.

Methods: spatial-noise.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.conditions.picture import Picture
from fewstep.core.noise import Noise
from fewstep.denoisers.coordinates import CoordinateDenoiser, sample_as_data
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.processes.spatial_noise import SpatialNoise, noise_map
from fewstep.processes.ve import EDM
from fewstep.sampling.build import plan

F64 = torch.float64
SHAPE = (1, 2, 3)


class Exact(nn.Module):
    """eps of standard normal data at noise of the given strength: by the map if there is one, else the level."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, x, noise, y=None):
        self.seen = y
        level = noise.reshape(-1, 1, 1, 1) if y is None else y[:, 1:]
        return level * x / (1 + level**2) * self.one


class Oracle(nn.Module):
    """eps of known data."""

    def __init__(self, x0):
        super().__init__()
        self.x0 = nn.Parameter(x0)

    def forward(self, x, noise, y):
        return (x - self.x0) / y[:, 1:]


def denoiser(network=None, least=0.002):
    process = EDM(least, 1.0)
    return CoordinateDenoiser(network or Exact(), process, SpatialNoise(), "eps", SHAPE, {"y": Picture((2, 2, 3))})


def observed(n, deviation, seed=50):
    """Standard normal pictures, and y: with noise of this map on them, and the map."""
    x0, noise = Noise(seed).normal(0, (n, *SHAPE), "cpu", F64), Noise(seed).normal(1, (n, *SHAPE), "cpu", F64)
    deviation = torch.as_tensor(deviation, dtype=F64).expand(n, *SHAPE)
    return x0, torch.cat([x0 + deviation * noise, deviation], 1)


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp-2m"])
def test_a_constant_map_reproduces_the_scalar_process(solver):
    level = 0.37
    model = denoiser()
    plain = NetworkDenoiser(Exact(), EDM(0.002 * level, level), "eps", SHAPE)
    _, y = observed(4, level)
    times = [1.0, 0.6, 0.2, 0.05, 0.0]
    x = sample_as_data(model, plan(model.process, solver, timesteps=times), model.coordinates.start(y), y=y)
    made = plan(plain.process, solver, timesteps=[level * s for s in times])
    z = made.run(plain, torch.zeros(4, *SHAPE, dtype=F64), init=y[:, :1], dtype=F64).samples
    torch.testing.assert_close(x, z, rtol=1e-6, atol=1e-6)


def test_clean_pixels_stay_exactly_and_the_network_reads_each_pixels_time():
    model = denoiser()
    deviation = torch.tensor([[0.0, 0.3, 0.8], [0.5, 0.0, 0.1]], dtype=F64)
    _, y = observed(5, deviation)
    seen = []
    made = plan(model.process, "ddpm", 4)
    x = sample_as_data(
        model,
        made,
        model.coordinates.start(y),
        y=y,
        callback=lambda n, t, *_: seen.append((t, model.network.seen)),
    )
    assert torch.equal(x[:, 0][:, deviation == 0], y[:, 0][:, deviation == 0])
    assert bool((x[:, 0][:, deviation > 0] != y[:, 0][:, deviation > 0]).all())
    for t, given in seen:
        assert torch.equal(given[:, :1], y[:, :1])
        torch.testing.assert_close(given[:, 1:], t * y[:, 1:])


def test_ancestral_steps_draw_from_the_exact_posterior():
    """x0 ~ N(0, 1) and y = x0 + m n: x0 given y is N(y / (1 + m^2), m^2 / (1 + m^2)), for every pixel its own m."""
    deviation = torch.tensor([[0.2, 0.5, 1.0], [2.0, 0.1, 3.0]], dtype=F64)
    model = denoiser()
    y = torch.cat([torch.full(SHAPE, 0.7, dtype=F64), deviation[None]]).expand(8_000, 2, 2, 3)
    made = plan(model.process, "dpmpp-2m-sde", 60, "log-snr")
    x = sample_as_data(model, made, model.coordinates.start(y), y=y)[:, 0]
    variance = deviation**2 / (1 + deviation**2)
    torch.testing.assert_close(x.mean(0), 0.7 / (1 + deviation**2), rtol=0, atol=0.03)
    torch.testing.assert_close(x.var(0), variance, rtol=0.06, atol=0)


def test_training_noise_is_correlated_with_the_pictures_as_in_a_run():
    n, deviation = 20_000, 0.4
    x0, y = observed(n, deviation)
    own = (y[:, :1] - x0) / deviation
    model = denoiser(Oracle(x0))
    steps = []

    def watch(count, t, x, prediction):
        steps.append((t, x - x0 / deviation))  # s eps

    sample_as_data(model, plan(model.process, "ddpm", 5, "uniform"), model.coordinates.start(y), y=y, callback=watch)
    assert len(steps) == 5 and steps[0][0] == 1.0
    for s, noise in steps:
        run = noise / s
        fresh = Noise(7).normal(3, tuple(x0.shape), "cpu", F64)
        trained = model.coordinates.eps(x0 / deviation, fresh, torch.full((n,), s, dtype=F64), {"y": y})
        for eps in (run, trained):
            assert float((eps * own).mean()) == pytest.approx(s, abs=0.02)
            assert float(eps.var()) == pytest.approx(1.0, abs=0.02)


def test_the_noise_model_and_bad_input():
    signal = torch.tensor([-0.1, 0.0, 1.0], dtype=F64)
    torch.testing.assert_close(noise_map(signal, 0.3, 0.16), torch.tensor([0.3, 0.3, 0.5], dtype=F64))
    with pytest.raises(ValueError, match="at least 0"):
        noise_map(signal, -0.1, 0.1)
    with pytest.raises(ValueError, match="noisy picture, then"):
        SpatialNoise().encode(torch.zeros(1, 1, 2, 3), {})
    _, y = observed(2, 0.3)
    model = denoiser()
    with pytest.raises(ValueError, match="from 0 to 1"):
        model.loss_pair(torch.zeros(2, *SHAPE), torch.zeros(2, *SHAPE), torch.tensor([0.5, 1.5], dtype=F64), y=y)
