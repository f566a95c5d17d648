"""The measured covariance, and the chain that is exact on a Gaussian in any number of steps."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, gaussian, half, latent, mixture, normal, wide

import fewstep as fs
from fewstep.core.denoiser import Wrapper
from fewstep.core.prediction import Prediction
from fewstep.denoisers.calibration import Calibration
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.operators.noise import Gaussian
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.restoration.calibrated import Calibrated, shortened
from fewstep.restoration.moments import Moments
from fewstep.restoration.restore import walking
from fewstep.sampling.sample import sample

N = 20_000


def true_calibration(model: GaussianMixture) -> Calibration:
    """Cov(x0 | x_t) of one Gaussian, on a fine grid: what an infinite calibration would find."""
    c = (model.basis * model.variances[0]) @ model.basis.T
    grid = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    eye = torch.eye(D, dtype=torch.float64)
    values = torch.stack([torch.linalg.inv(torch.linalg.inv(c) + torch.exp(2 * one) * eye) for one in grid])
    return Calibration("dense", grid, values, model.process.config())


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
@pytest.mark.parametrize("operator", [wide, half])
def test_pointwise_it_is_the_exact_posterior_of_a_gaussian(process, operator):
    model, a = gaussian(process=process), operator()
    calibration = true_calibration(model)
    y = a.measure(model.sample(1, seed=3), noise=0.2)
    for log_snr in (-4.0, 0.0, 2.0):
        t = torch.tensor(process.time(log_snr), dtype=torch.float64)
        x = model.sample(4, seed=5) * process.alpha(t) + normal(4, D) * process.sigma(t)
        exact = model.posterior(a, y, 0.2)(x, t).x0
        for pull in ("jacobian", "covariance"):
            own = Moments(model, a, 0.2, Calibrated(pull=pull, calibration=calibration))
            assert torch.allclose(own(x, t, y=y.expand(4, -1)).x0, exact, atol=1e-8), (pull, log_snr)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_chain_has_a_gaussians_law_in_any_number_of_steps(steps):
    model, a = gaussian(), half()
    step = Calibrated(wide=1.0, calibration=true_calibration(model))
    y = a.measure(model.sample(1, seed=3), noise=0.3)
    truth = model.posterior(a, y, 0.3)
    process = model.process
    times = [process.time(v) for v in torch.linspace(-2.0, 3.0, steps).tolist()] + [process.t_zero]
    # Started at the exact marginal of the first level, as noise alone is not.
    begun = truth.sample(N, seed=1) * process.alpha(times[0]) + normal(N, D, seed=2) * process.sigma(times[0])

    def law(width: float) -> tuple[float, float]:
        own = Calibrated(wide=width, calibration=step.calibration)
        loop = walking(model, a, Gaussian(0.3), own, "calibrated", steps, times)
        posterior = Moments(model, a, 0.3, own)
        noise = begun / process.sigma(times[0])
        x = loop(posterior, noise, y=y.expand(N, -1), dtype=torch.float64)
        exact = truth.basis * truth.variances[0] @ truth.basis.T
        error = torch.cov(x.T) - exact
        spread = ((exact.diagonal()[:, None] * exact.diagonal() + exact**2) / N).sqrt()
        mean = (x.mean(0) - truth.means[0]).abs() / (exact.diagonal() / N).sqrt().clamp_min(1e-9)
        return float((error.abs() / spread.clamp_min(1e-9)).max()), float(mean.max())

    covariance, mean = law(1.0)
    assert covariance < 4 and mean < 4
    assert law(0.0)[0] > 20  # what is left open is missing


def test_a_mixtures_calibration_finds_a_gaussians_error():
    model = gaussian()
    made = fs.calibrate(model, model.sample(4000, seed=1), n=4000, levels=6)
    assert made.basis == "dense" and model.calibration is made
    true = true_calibration(model)
    for log_snr in made.log_snr[1:-1].tolist():
        at = torch.tensor(log_snr)
        a, b = made.covariance(at).matrix((D,))[0], true.covariance(at).matrix((D,))[0]
        assert float((a - b).norm() / b.norm()) < 0.1, log_snr


def test_bases_agree_where_they_can_and_fall_with_the_noise_beyond_the_grid():
    model = mixture()
    data = model.sample(600, seed=1)
    dense = fs.calibrate(model, data, basis="dense")
    each = fs.calibrate(model, data, basis="elements")
    number = fs.calibrate(model, data, basis="number")
    assert torch.allclose(dense.values.diagonal(dim1=1, dim2=2), each.values)
    assert torch.allclose(each.values.mean(1), number.values)
    last = float(number.log_snr[-1])
    beyond = number.covariance(torch.tensor([last, last + 1.0])).mean()
    assert float(beyond[1] / beyond[0]) == pytest.approx(torch.exp(torch.tensor(-2.0)).item())
    first = number.covariance(torch.tensor([-100.0, float(number.log_snr[0])])).mean()
    assert float(first[0]) == pytest.approx(float(first[1]))


def test_a_model_of_latents_is_measured_in_latents():
    """Data are encoded, and so are its own samples; here nothing is lost by that."""
    model = latent()
    inner = model.model
    z = inner.sample(64, seed=1)
    assert torch.allclose(fs.calibrate(model, model.decode(z), n=64, levels=3).values,
                          fs.calibrate(inner, z, n=64, levels=3).values)  # fmt: skip
    own = fs.calibrate(model, n=16, levels=3).values
    assert torch.allclose(own, fs.calibrate(inner, n=16, levels=3).values, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match=r"samples of shape \(6,\) do not fit the model, which has \(7,\)"):
        odd = mixture()
        odd.shape = (7,)
        fs.calibrate(odd, z, n=64, levels=3)


def test_it_travels_with_its_model(tmp_path):
    model = mixture()
    fs.calibrate(model, model.sample(64, seed=1), n=64, levels=4)
    fs.save(model, tmp_path / "model")
    loaded = fs.load(tmp_path / "model")
    assert torch.allclose(loaded.calibration.values, model.calibration.values, rtol=1e-6)
    (tmp_path / "model" / "calibration.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no calibration"):
        fs.load(tmp_path / "model")


def test_a_run_of_many_is_the_runs_of_each():
    model, a = mixture(), half()
    fs.calibrate(model, model.sample(64, seed=1), n=64, levels=4)
    y = a.measure(model.sample(3, seed=3), noise=0.1)
    together = fs.restore(model, y, a, 0.1, n=2, nfe=4, dtype=torch.float64)
    split = fs.restore(model, y, a, 0.1, n=2, nfe=4, dtype=torch.float64, batch_size=2)
    assert together.shape == (3, 2, D) and torch.allclose(together, split, rtol=1e-12, atol=1e-12)
    alone = fs.restore(model, y[:1], a, 0.1, n=2, nfe=4, dtype=torch.float64)
    assert torch.allclose(alone[0], together[0], rtol=1e-12, atol=1e-12)


def test_what_does_not_fit_is_said():
    model = mixture()
    with pytest.raises(ValueError, match="at least 16 samples at 2 levels, got n=4"):
        fs.calibrate(model, n=4)
    with pytest.raises(ValueError, match=r"samples of shape \(3,\) do not fit"):
        fs.calibrate(model, torch.zeros(20, 3))
    with pytest.raises(ValueError, match="wide is a share of a variance"):
        Calibrated(wide=2.0)
    made = fs.calibrate(model, model.sample(20, seed=1), n=20, levels=2)
    with pytest.raises(ValueError, match="of another process"):
        made.check(Flow().config(), (D,))
    with pytest.raises(ValueError, match="of another shape"):
        made.check(model.process.config(), (D + 1,))


def test_ordinary_plans_run_it_too():
    model, a = mixture(), half()
    fs.calibrate(model, model.sample(64, seed=1), n=64, levels=4)
    y = a.measure(model.sample(1, seed=3), noise=0.1)
    x = sample(fs.posterior(model, a, 0.1), 4, y=y, steps=4)
    assert bool(torch.isfinite(x).all())


def test_a_move_that_overshoots_the_measurement_is_shortened():
    """Along itself A of it is at most so many times what was meant, each row by itself."""
    a, meant = half(), normal(4, D, seed=1)
    move = torch.stack([meant[0] * 0.5, meant[1] * 2.5, meant[2] * 7, -meant[3]])
    found = shortened(move, meant, a, 3.0)
    torch.testing.assert_close(found, torch.stack([move[0], move[1], meant[2] * 3, 0 * meant[3]]))
    torch.testing.assert_close(shortened(move[2:3], meant[2:3], a, 3.0), found[2:3])
    assert not shortened(torch.zeros(1, D), meant[:1], a, 3.0).any()


class _Steep(Wrapper):
    """A model whose Jacobian in the measured error's place is twenty times too large."""

    def forward(self, x, t, **condition):
        x0 = self.model(x, t, **condition).x0
        return Prediction(x0 + 20 * (x0 - x0.detach()), "x0", x, t, self.process)


def test_a_network_steeper_than_its_error_does_not_run_away():
    model, a = mixture(), half()
    fs.calibrate(model, model.sample(400, seed=1), n=400, levels=8)
    steep = _Steep(model)
    steep.calibration = model.calibration
    y = a.measure(model.sample(3, seed=3), noise=0.05)
    held = fs.restore(steep, y, a, 0.05, n=8, nfe=12, dtype=torch.float64, report=True)
    assert float(held.samples.abs().max()) < 10 and float(held.residual.mean()) < 1
    with pytest.raises(ValueError, match="left the data's range"):
        fs.restore(steep, y, a, 0.05, n=8, nfe=12, dtype=torch.float64, options={"most": float("inf")})
    with pytest.raises(ValueError, match="most is at least 1 time"):
        Calibrated(most=0.5)
