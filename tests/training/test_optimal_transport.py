"""dpm-ot: the transport map where it is known, its masses, and the plan that begins from it."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.denoisers.dataset import DatasetDenoiser
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.sample import sample
from fewstep.training.optimal_transport import OTStart

F64 = torch.float64


def middle(process) -> float:
    """Where noise and signal are equal."""
    return process.time(0.0)


def test_in_one_dimension_the_cells_are_quantiles():
    data = torch.tensor([[-2.0], [3.0], [0.5], [0.1], [-0.4], [1.2], [5.0]], dtype=F64)
    start = OTStart(Flow(), data, 0.3, seed=1).fit(400)  # under which no two atoms nearly coincide
    order = start.atoms.flatten().argsort()
    y, h = start.atoms.flatten()[order], start.heights[order]
    ends = (h[:-1] - h[1:]) / (y[1:] - y[:-1])  # where two neighbours' potentials meet
    wanted = torch.special.ndtri(torch.arange(1, 7, dtype=F64) / 7)
    torch.testing.assert_close(ends, wanted, atol=0.03, rtol=0)
    z = torch.linspace(-3, 3, 50, dtype=F64).unsqueeze(1)
    cell = torch.bucketize(z.flatten(), ends)
    assert torch.equal(start.draw(z), y[cell].unsqueeze(1))


def test_symmetric_atoms_have_equal_heights():
    angle = torch.arange(6) * math.pi / 3
    data = torch.stack((angle.cos(), angle.sin()), 1).double() * 2
    start = OTStart(VP(), data, 0.3)
    start.atoms = data.clone()  # noise would break the symmetry
    start.heights = torch.linspace(-1, 1, 6, dtype=F64)
    start.fit(300)
    assert float((start.heights - start.heights.mean()).abs().max()) < 0.05
    z = Noise(0).normal(0, (200, 2), "cpu", F64)
    assert torch.equal(start.draw(z), data[(z @ data.T).argmax(1)])


def test_masses_are_equal():
    data = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.2, 1.0, 3.0])
    start = OTStart(VP(), data, middle(VP())).fit(300)
    masses = start.masses(65_536)
    assert float(masses.sum()) == pytest.approx(1)
    error = math.sqrt(40 / 65_536)  # of the estimate, relative
    assert float((40 * masses - 1).square().mean().sqrt()) < 3 * error
    before = OTStart(VP(), data, middle(VP())).masses(65_536)
    assert float((40 * before - 1).square().mean().sqrt()) > 0.5


def test_atoms_are_the_diffused_samples():
    process, data = VP(), torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    start = OTStart(process, data, 0.4, seed=8)
    noise = Noise(8).normal(0, (5, 2, 3))
    expected = process.alpha(0.4) * data + process.sigma(0.4) * noise
    torch.testing.assert_close(start.atoms.reshape(5, 2, 3), expected)


def two_modes(n: int = 60):
    data = 0.2 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    data[:, 0] += torch.where(torch.arange(n) % 2 == 0, 3.0, -3.0)
    return data


def test_extrapolation_stays_within_a_mode_and_at_its_noise_level():
    data, process = two_modes(), VP()
    t = process.time(1.0)
    alpha, sigma = process.alpha(t), process.sigma(t)
    start = OTStart(process, data, t).fit(200)
    z = Noise(4).normal(0, (2000, 2), "cpu", F64)
    state, plain = start.draw(z, neighbours=4), start.draw(z)
    fresh = torch.cdist(state, start.atoms).amin(1) > 1e-6
    assert float(fresh.double().mean()) > 0.3  # not training samples alone
    # The mode is that of the point's own atom: |x| is 3 in both, and the noise 0.37 / 0.93 of the signal.
    assert float((state[:, 0] * plain[:, 0] > 0).double().mean()) > 0.995
    # Averages of four would have half the noise; these have all of it, and go a little beyond the atoms (1.3 to 1.6).
    assert 0.9 < float(state[:, 1].std()) / math.sqrt(sigma**2 + 0.04 * alpha**2) < 1.7
    torch.testing.assert_close(start.draw(z[:7], neighbours=4), state[:7])  # each a function of its own noise


def test_a_plan_from_the_drawn_states():
    process, data = VP(), two_modes()
    t = process.time(1.0)
    start = OTStart(process, data, t).fit(200)
    times = [process.time(1.0 + k * 0.6) for k in range(6)]
    base = plan(process, "ddim", timesteps=[t, *times[1:], process.t_zero])
    made = start.plan(base)
    model = DatasetDenoiser(data, process)
    x = sample(model, 500, plan=made, seed=1, dtype=F64)
    assert x.shape == (500, 2) and made.nfe == base.nfe and made.about["start"] == "dpm-ot"
    assert float(torch.cdist(x, data).amin(1).max()) < 0.2  # all are near the data, none between its modes
    assert float((x[:, 0] > 0).double().mean()) == pytest.approx(0.5, abs=0.08)
    torch.testing.assert_close(sample(model, 3, plan=made, seed=1, dtype=F64), x[:3])


def test_files(tmp_path):
    start = OTStart(VP(), two_modes(), 0.3, seed=2).fit(5)
    read = OTStart.load(start.save(tmp_path / "start.safetensors"))
    z = Noise(0).normal(0, (9, 2), "cpu", F64)
    assert torch.equal(read.draw(z, 3), start.draw(z, 3)) and torch.equal(read.heights, start.heights)
    assert torch.equal(OTStart(VP(), two_modes(), 0.3, seed=2).fit(5).heights, start.heights)
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="holds no start"):
        OTStart.load(tmp_path / "x.safetensors")


def test_bad_input():
    data = two_modes()
    with pytest.raises(ValueError, match="t lies between 0.001 and 1, got 2"):
        OTStart(VP(), data, 2.0)
    with pytest.raises(ValueError, match="N at least 2"):
        OTStart(VP(), data[:1], 0.3)
    start = OTStart(VP(), data, 0.3)
    with pytest.raises(ValueError, match=r"call fit\(\) first"):
        start.draw(data)
    start.fit(2)
    with pytest.raises(ValueError, match="neighbours lie between 1 and 60"):
        start.draw(data, neighbours=0)
    with pytest.raises(ValueError, match="the atoms are at t = 0.3"):
        start.plan(plan(VP(), "ddim", 4))
    with pytest.raises(ValueError, match="made for another process"):
        start.plan(plan(Flow(), "ddim", 4))
    with pytest.raises(ValueError, match="steps and draws must be at least 1"):
        start.fit(0)
