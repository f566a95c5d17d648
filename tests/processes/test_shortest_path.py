"""The shortest path: its formulas, its length, and that the marginals are those of the geodesic.

Methods: shortest-path, shortest-path-band.
"""

from __future__ import annotations

import json
import math

import pytest
import torch

from fewstep.core.process import process_from_config
from fewstep.denoisers.coordinates import DCT, CoordinateDenoiser
from fewstep.networks.mlp import MLP
from fewstep.processes.cosine import Cosine
from fewstep.processes.flow import Flow
from fewstep.processes.shortest_path import ShortestPath, ShortestPathBand, radial, shortest_path
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.sample import sample

F64 = torch.float64
VARIANCES = (1e-4, 0.03, 1 - 1e-12, 1.0, 1 + 1e-7, 7.0, 400.0)
each = pytest.mark.parametrize("variance", VARIANCES)


def clock(process, n=301):
    return torch.linspace(process.t_min, process.t_max, n, dtype=F64)


@each
def test_the_variance_moves_straight_in_its_logarithm(variance):
    process = ShortestPathBand(variance)
    t = clock(process)
    alpha, sigma = process.alpha(t), process.sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(alpha**2 * variance + sigma**2, variance ** (1 - t), rtol=1e-9, atol=0)


@each
def test_inverse_and_derivatives(variance):
    process = ShortestPathBand(variance)
    t = clock(process)
    torch.testing.assert_close(process.time(process.log_snr(t)), t, rtol=1e-9, atol=1e-9)
    for name in ("alpha", "sigma"):
        s = t.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(getattr(process, name)(s).sum(), s)
        torch.testing.assert_close(getattr(process, f"d{name}")(t), slope, rtol=1e-9, atol=1e-12)


def test_unit_variance_is_the_square_root_schedule_and_ends_are_exact():
    process = ShortestPathBand(1.0, t_max=1.0)
    t = clock(process)
    torch.testing.assert_close(process.alpha(t) ** 2, 1 - t, rtol=1e-8, atol=1e-9)
    for variance in VARIANCES:
        process = ShortestPathBand(variance, t_max=1.0)
        assert (process.alpha(0.0), process.sigma(0.0)) == (1.0, 0.0)
        assert (process.alpha(1.0), process.sigma(1.0)) == (0.0, 1.0)


def test_the_bands_answer_as_their_scalar_processes():
    process = ShortestPath(VARIANCES, (6, 0, 1, 2, 3, 4, 5, 5), (2, 4))
    t = torch.tensor([0.1, 0.5, 0.99], dtype=F64)
    for name in ("alpha", "sigma", "dalpha", "dsigma"):
        found = getattr(process, name)(t).flatten(1)
        for element, band in enumerate(process.index):
            torch.testing.assert_close(found[:, element], getattr(process.bands[band], name)(t), rtol=1e-12, atol=0)
    assert process.log_snr(0.5) == ShortestPathBand(1.0).log_snr(0.5)  # the median is the clock
    assert process_from_config(json.loads(json.dumps(process.config()))) == process


def fisher_length(log_variances: torch.Tensor) -> float:
    """Of a path of diagonal zero-mean Gaussians `(points, K)`: the integral of sqrt(sum (d log v)^2 / 2)."""
    return float((log_variances.diff(dim=0).square().sum(1) / 2).sqrt().sum())


def test_no_other_path_is_as_short():
    variances = torch.tensor([0.002, 0.05, 0.7, 4.0, 60.0], dtype=F64)
    t = torch.linspace(0, 1, 2001, dtype=F64)
    process = ShortestPath(tuple(variances.tolist()), tuple(range(5)), (5,), t_max=1.0)
    own = fisher_length((process.alpha(t) ** 2 * variances + process.sigma(t) ** 2).log())
    assert own == pytest.approx(math.sqrt(float(variances.log().square().sum()) / 2), rel=1e-9)
    others = [
        ((scalar.alpha(t)[:, None] ** 2 * variances) + scalar.sigma(t)[:, None] ** 2).log()
        for scalar in (Cosine(t_max=1.0), Flow(), VP())
    ]
    bend = torch.sin(math.pi * t)[:, None]
    for seed in range(3):
        push = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=F64)
        others.append((1 - t)[:, None] * variances.log() + 0.05 * bend * push)
    powers = 1 + 0.2 * torch.arange(5, dtype=F64)  # lambda^((1 - t)^p), p by band: the same ends, another exponent
    others.append((1 - t)[:, None] ** powers * variances.log())
    assert all(fisher_length(path) > own * (1 + 1e-5) for path in others)


def test_spectrum_of_data():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([3.0, 0.5, 0.02, 1.0, 0.1, 0.0], dtype=F64).reshape(2, 3)
    data = scale * torch.randn(4000, 2, 3, generator=generator, dtype=F64)
    process = shortest_path(data, floor=1e-3)
    found = torch.tensor(process.variances, dtype=F64)[list(process.index)].reshape(2, 3)
    torch.testing.assert_close(found, (scale**2).clamp_min(float(found.max()) * 1e-3), rtol=0.1, atol=0)
    grouped = shortest_path(data, index=(5, 5, 9, 9, 9, 5))
    mean = data.square().mean(0).flatten()
    assert grouped.variances == pytest.approx([float(mean[[0, 1, 5]].mean()), float(mean[[2, 3, 4]].mean())])
    assert grouped.index == (0, 0, 1, 1, 1, 0)
    assert radial((2, 2, 4)) == (0, 1, 2, 3, 2, 2, 3, 4) * 2
    with pytest.raises(ValueError, match="a band for each of 6"):
        shortest_path(data, index=(0, 1))
    with pytest.raises(ValueError, match="positive"):
        ShortestPath((0.0, 1.0), (0, 1), (2,))


def test_a_network_of_pixels_samples_in_frequencies():
    shape = (2, 4, 6)
    data = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))
    dct = DCT(shape)
    process = shortest_path(dct.encode(data, {}), index=radial(shape))
    torch.manual_seed(0)
    model = CoordinateDenoiser(MLP(shape), process, dct, "eps", shape).eval()
    torch.nn.init.normal_(model.network.last.weight, std=0.05)
    torch.testing.assert_close(model.decode(model.encode(data)), data, rtol=1e-4, atol=1e-5)
    made = plan(process, "dpmpp-2m", 4, "uniform")
    drawn = sample(model, 3, plan=made, seed=1)
    # By hand: the same plan on states, whose answer is the transform of the network's at the inverse transform.
    x = made(model, torch.stack([sample_noise(1, i, shape) for i in range(3)]))
    torch.testing.assert_close(drawn, dct.decode(x, {}))
    state = torch.randn(3, *shape)
    t = torch.tensor(0.4)
    torch.testing.assert_close(model(state, t).value, dct.encode(model.network(dct.decode(state, {}), t.expand(3)), {}))


def sample_noise(seed, i, shape):
    from fewstep.core.noise import Noise

    return Noise(seed, i).normal(0, (1, *shape))[0]
