"""Runs that begin late, from the measurement, and results that are brought to it."""

from __future__ import annotations

import math

import pytest
import torch
from restoration.problems import D, gaussian, half, wide
from restoration.test_calibrated import true_calibration

import fewstep as fs
from fewstep.operators.noise import Gaussian, Poisson
from fewstep.restoration.begin import Begin, begins
from fewstep.restoration.calibrate import keep
from fewstep.timesteps.grid import make_times

F64 = torch.float64


@pytest.fixture(scope="module")
def model():
    made = gaussian()
    keep(made, true_calibration(made))
    return made


@pytest.mark.parametrize("start", ["measurement", 0.3])
def test_a_gaussians_law_is_right_wherever_the_run_begins(model, start):
    a, n = wide(), 4000
    y = a.measure(model.sample(1, seed=3), noise=0.2)
    how = {"method": "exact", "solver": "dpmpp-2m", "nfe": 12, "dtype": F64, "batch_size": n}
    x = fs.restore(model, y, a, 0.2, n=n, start=start, **how)[0]
    exact = model.posterior(a, y, 0.2)
    c = exact.covariances()[0]
    assert float(((x.mean(0) - exact.means[0]) / (c.diagonal() / n).sqrt()).abs().max()) < 4
    spread = ((c.diagonal()[:, None] * c.diagonal() + c**2) / n).sqrt()
    assert float(((torch.cov(x.T) - c) / spread).abs().max()) < 4.5


def test_a_start_at_the_first_time_is_the_ordinary_run_bit_for_bit(model):
    a, process = wide(), model.process
    y = a.measure(model.sample(2, seed=3), noise=0.2)
    whole = math.exp(-process.log_snr(process.t_max))
    for method in ("calibrated", "dps", "daps"):
        plain = fs.restore(model, y, a, 0.2, method=method, nfe=4)
        for start in (whole, 2 * whole):
            assert torch.equal(fs.restore(model, y, a, 0.2, method=method, nfe=4, start=start), plain)
        assert not torch.equal(fs.restore(model, y, a, 0.2, method=method, nfe=4, start=1.0), plain)


def test_the_level_is_twice_what_the_measurement_leaves_open(model):
    y_noise = 0.2
    for a in (wide(), fs.operators.Identity().fit((D,))):
        matrix, c = a.matrix(), true_calibration(model).covariance(torch.tensor(-20.0)).matrix((D,))[0]
        gain = c @ matrix.T @ torch.linalg.inv(matrix @ c @ matrix.T + y_noise**2 * torch.eye(len(matrix), dtype=F64))
        left = float((c - gain @ matrix @ c).diagonal().max().sqrt())
        assert Begin(model, a, Gaussian(y_noise), "exact", "measurement").level == pytest.approx(2 * left, rel=0.2)


def test_evaluations_are_those_that_are_told_and_rows_do_not_mix(model):
    a = half()
    y = a.measure(model.sample(3, seed=3), noise=0.2)
    seen = []

    class Counting(type(model)):
        def forward(self, x, t, **condition):
            seen.append(float(t.reshape(-1)[0]))
            return super().forward(x, t, **condition)

    counted = gaussian()
    counted.__class__ = Counting
    keep(counted, true_calibration(counted))
    for method in ("calibrated", "pigdm", "dps", "daps", "particles"):
        seen.clear()
        told = fs.restore(counted, y, a, 0.2, method=method, nfe=6, start=1.0, report=True)
        assert len(seen) == told.nfe == 6 and seen[0] == pytest.approx(counted.process.t_max), method
        assert seen[1] == pytest.approx(counted.process.time(0.0), rel=1e-5), method
    assert torch.allclose(fs.restore(model, y[:1], a, 0.2, start=1.0)[0], fs.restore(model, y, a, 0.2, start=1.0)[0])


def test_a_late_grid_is_the_last_part_of_the_rules(model):
    from fewstep.restoration.begin import late

    process, first = model.process, model.process.time(0.5)
    times = late(lambda share: make_times(process, 5, "karras", "zero", share), first)
    assert len(times) == 6 and times[0] == first and times[-1] == process.t_zero
    assert all(a > b for a, b in zip(times, times[1:], strict=False))


def test_a_noisy_result_is_brought_within_the_noise(model):
    """The proximal step: what it leaves is the noise's own size, and its move is along `A^T r`."""
    a = wide()
    y = a.measure(model.sample(4, seed=3), noise=0.05)
    how = {"method": "pigdm", "nfe": 4, "dtype": F64}
    x, z = (fs.restore(model, y, a, 0.05, final=final, **how) for final in (None, "project"))
    left = [(y - a(one)).square().mean(1).sqrt() for one in (x, z)]
    far = left[0] > 0.05
    assert bool(far.any())
    assert torch.allclose(left[1][far], torch.full_like(left[1][far], 0.05), rtol=1e-4)
    assert torch.equal(x[~far], z[~far])
    back, move = a.adjoint(y - a(z))[far], (z - x)[far]
    assert torch.allclose(torch.cosine_similarity(back, move), torch.ones(len(move), dtype=F64))
    assert torch.allclose(a.null(z), a.null(x))


def test_what_does_not_fit_is_said(model):
    a = half()
    y = a.measure(model.sample(2, seed=3), noise=0.1)
    counts, magnitude = a(torch.ones(2, D)), fs.operators.Magnitude(half())
    cases = (
        (lambda: fs.restore(model, y, a, 0.1, method="ddrm", start=1.0), "'ddrm' begins by a rule of its own"),
        (lambda: fs.restore(model, y, a, 0.1, start="here"), "start is 'measurement' or a level"),
        (lambda: fs.restore(model, y, a, 0.1, start=-1.0), "a level sigma / alpha above 0, got -1"),
        (lambda: fs.restore(model, y, a, 0.1, start=1e-6), "leaves nothing to do"),
        (lambda: fs.restore(model, y, a, 0.1, start=1.0, nfe=1), "takes an evaluation of the nfe for its guess"),
        (lambda: fs.restore(model, y, a, 0.1, start=1.0, timesteps=[0.5, 0.1]), "leave start out"),
        (lambda: fs.restore(model, counts, a, Poisson(9), method="dps", start=1.0), "start takes Gaussian noise"),
        (lambda: fs.restore(model, y, magnitude, 0.1, method="dps", start=1.0), "start takes a linear operator"),
        (lambda: fs.restore(model, y, magnitude, 0.1, method="dps", final="project"), "is not linear"),
        (lambda: fs.restore(model, y, a, torch.full((D,), 0.1), final="project"), "noise of one deviation"),
    )
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert begins("calibrated") and begins("dps") and not begins("ddrm")
