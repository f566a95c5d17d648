"""model-statistics: l, s, b against closed forms, and their file."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.statistics import Statistics, estimate_statistics, load_statistics

F64 = torch.float64
VARIANCES, MEAN = torch.tensor([0.04, 0.5, 1.5], dtype=F64), torch.tensor([0.7, -0.3, 0.0], dtype=F64)


def gaussian(process) -> GaussianMixture:
    return GaussianMixture(torch.ones(1), MEAN[None], VARIANCES[None], process)


@pytest.mark.parametrize(
    "process",
    [*(pytest.param(process, marks=pytest.mark.slow) for process in (VP(), EDM())), Flow()],
    ids=lambda p: p.name,
)
def test_a_gaussians_linear_part_is_its_closed_form(process):
    """And with the estimate the solver all but solves it: f does not vary, and what is left of it is drift."""
    model = gaussian(process)
    found = estimate_statistics(model, model.sample(512, 1), n=64, seed=3)
    l = torch.sigmoid(-2 * found.log_snr[:, None] - VARIANCES.log())  # noqa: E741  sigma^2 / (alpha^2 c + sigma^2)
    torch.testing.assert_close(found.l, l, rtol=0, atol=3e-3)
    noisy = found.log_snr < -2
    torch.testing.assert_close((1 - found.l)[noisy], (1 - l)[noisy], rtol=2e-3, atol=0)  # in proportion, far out too
    noise = Noise(1).normal(0, (8, 3), "cpu", F64)
    exact = plan(process, "vab-4", 300, "karras")(model, noise, dtype=F64)

    def error(solver: str, **options) -> float:
        return float((plan(process, solver, 6, **options)(model, noise, dtype=F64) - exact).norm() / exact.norm())

    assert error("dpm-solver-v3", statistics=found) < 0.1 * error("dpmpp-2m")


def test_the_drift_is_that_of_the_trajectory(smooth):
    """s f + b against f' by a fine difference along the exact ODE, on samples the estimate has not seen."""
    process = smooth.process
    found = estimate_statistics(smooth, smooth.sample(2048, 1), n=256, seed=3)
    clean, z = smooth.sample(4096, 7), torch.randn(4096, 2, generator=torch.Generator().manual_seed(8), dtype=F64)

    def f(y: torch.Tensor, log_snr: float) -> torch.Tensor:
        t = process.time(log_snr)
        x0 = smooth(y * process.alpha(t), torch.tensor(t, dtype=F64)).x0
        return (1 - found.at(np.array([log_snr]))[0]) * y - x0

    for log_snr in (-1.0, 0.3, 1.5):
        t, d = process.time(log_snr), 1e-4
        y = clean + z * math.exp(-log_snr)
        slope = smooth(y * process.alpha(t), torch.tensor(t, dtype=F64)).x0 - y  # y' = x0 - y
        change = (f(y + d * slope, log_snr + d) - f(y - d * slope, log_snr - d)) / (2 * d)
        _, s, b = found.at(np.array([log_snr]))
        left = (change - s * f(y, log_snr) - b).var(0, correction=0) + (change - s * f(y, log_snr) - b).mean(0) ** 2
        values = f(y, log_snr)
        centred = values - values.mean(0)
        best_s = (centred * change).mean(0) / (centred**2).mean(0)
        best = (change - change.mean(0) - best_s * centred).pow(2).mean(0)
        assert bool((left - best < 0.03 * change.pow(2).mean(0)).all()), (log_snr, left, best)
        if log_snr == -1.0:
            assert bool((best < 0.9 * change.var(0)).all())  # there is a drift to fit


def test_they_are_those_of_the_seed(smooth):
    """The model's own samples serve where no data are given."""
    first, again = (estimate_statistics(smooth, n=32, points=24, seed=2) for _ in range(2))
    assert torch.equal(first.b, again.b) and first.shape == (2,)
    assert not torch.equal(first.l, estimate_statistics(smooth, n=32, points=24, seed=3).l)


def test_a_coordinate_that_never_varies_is_finite():
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.tensor([[1e-12, 0.3]]), EDM())
    found = estimate_statistics(model, n=64, points=30)
    assert all(bool(torch.isfinite(v).all()) for v in (found.l, found.s, found.b))
    assert float(found.s.abs().max()) < 10


def test_between_the_points_they_are_cubic_and_beyond_constant():
    grid = torch.linspace(-3, 3, 13, dtype=F64)
    cubic = torch.stack((grid**3, 1 - grid), dim=1)
    kept = Statistics(VP().config(), grid, cubic, 2 * cubic, -cubic)
    u = np.array([-2.9, -0.1, 0.77, 2.99])
    l, s, b = kept.at(u)  # noqa: E741
    np.testing.assert_allclose(l.numpy(), np.stack((u**3, 1 - u), axis=1), atol=1e-12)
    np.testing.assert_allclose(s.numpy(), 2 * l.numpy())
    np.testing.assert_allclose(b.numpy(), -l.numpy())
    np.testing.assert_allclose(kept.at(np.array([9.0]))[0][0].numpy(), [27, -2], atol=1e-12)


def test_the_file_gives_them_back_and_no_other_does(tmp_path, smooth):
    found = estimate_statistics(smooth, n=32, points=24)
    path = found.save(tmp_path / "model.statistics.safetensors")
    back = load_statistics(path)
    for name in ("log_snr", "l", "s", "b"):
        assert torch.equal(getattr(back, name), getattr(found, name))
    back.check(VP(), (2,))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ValueError, match="other parameters"):
        back.check(VP(beta_max=10.0), (2,))
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        back.check(VP(), (3,))
    with pytest.raises(ValueError, match="no statistics file"):
        load_statistics(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"not at all")
    with pytest.raises(ValueError, match="holds no model statistics"):
        load_statistics(tmp_path / "bad")


def test_bad_input_is_named(smooth):
    with pytest.raises(ValueError, match="at least 16 samples"):
        estimate_statistics(smooth, n=4)
    with pytest.raises(ValueError, match="do not fit the model"):
        estimate_statistics(smooth, torch.zeros(8, 3))
    with pytest.raises(ValueError, match="increasing"):
        Statistics(VP().config(), torch.zeros(5, dtype=F64), *[torch.zeros(5, 2, dtype=F64)] * 3)
    with pytest.raises(ValueError, match="'s' has shape"):
        grid = torch.linspace(0, 1, 5, dtype=F64)
        Statistics(VP().config(), grid, torch.zeros(5, 2), torch.zeros(5, 3), torch.zeros(5, 2))
