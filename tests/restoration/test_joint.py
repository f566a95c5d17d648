"""The stacked law is the product of the two, and its posterior that of the stacked problem."""

from __future__ import annotations

import pytest
import torch
from restoration.problems import D, gaussian, half, mixture, normal, wide

import fewstep as fs
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.operators.noise import Gaussian
from fewstep.processes.flow import Flow
from fewstep.processes.vp import VP
from fewstep.restoration.joint import Joint

F64 = torch.float64


def stripes(process=None, components: int = 1) -> GaussianMixture:
    """Structured noise of three numbers that go up and down together."""
    direction = normal(3, seed=11)
    covariance = direction[:, None] * direction + 0.01 * torch.eye(3, dtype=F64)
    means = 0.5 * normal(components, 3, seed=12)
    return GaussianMixture(torch.ones(components), means, covariance.expand(components, 3, 3), process or VP())


def test_it_is_the_product_mixture():
    joint = Joint(mixture(), stripes(components=2))
    whole, t = joint.mixture(), torch.tensor(0.4, dtype=F64)
    assert whole.means.shape == (6, D + 3)
    x = normal(5, D + 3, seed=6)
    assert torch.allclose(joint(x, t).x0, whole(x, t).x0, atol=1e-10)


def test_exact_is_the_posterior_of_the_stacked_problem():
    joint = Joint(mixture(), stripes())
    whole, a, plain = joint.mixture(), joint.operator(wide()), wide()
    assert torch.allclose(a.matrix(), torch.cat([plain.matrix(), torch.eye(3, dtype=F64)], 1))
    y = a.measure(whole.sample(1, seed=3), noise=0.2)
    stacked = whole.posterior(a, y, 0.2)
    # A Gaussian noise of its own covariance is the same problem without the second state.
    covariance = stripes().covariances()[0] + 0.04 * torch.eye(3, dtype=F64)
    root = torch.linalg.cholesky(covariance)
    white = fs.operators.Matrix(torch.linalg.inv(root) @ plain.matrix()).fit((D,))
    alone = mixture().posterior(white, torch.linalg.inv(root) @ (y[0] - stripes().means[0]), Gaussian(1.0))
    assert torch.allclose(stacked.log_weights, alone.log_weights, atol=1e-8)
    assert torch.allclose(stacked.means[:, :D], alone.means, atol=1e-8)
    x, t = normal(4, D + 3, seed=6), torch.tensor(0.4, dtype=F64)
    wrapped = fs.posterior(whole, a, 0.2, method="exact")
    assert torch.allclose(wrapped(x, t, y=y.expand(4, -1)).x0, stacked(x, t).x0, atol=1e-8)


@pytest.mark.parametrize("method", ["dps", "ddrm", "pigdm", "cdim", "calibrated"])
@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
def test_methods_restore_with_it(method, process):
    joint = Joint(gaussian(process=process), stripes(process))
    if method == "calibrated":
        fs.calibrate(joint, joint.mixture().sample(100, seed=1), n=100, levels=4)
    a = joint.operator(wide())
    y = a.measure(joint.mixture().sample(2, seed=3), noise=0.1)
    x, n = joint.split(fs.restore(joint, y, a, 0.1, method=method, n=2, nfe=6, dtype=F64))
    assert x.shape == (2, 2, D) and n.shape == (2, 2, 3) and bool(torch.isfinite(x).all())


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="both models must have one process"):
        Joint(mixture(), stripes(Flow()))
    with pytest.raises(ValueError, match=r"measures \(6,\) of samples \(6,\), and model_n has \(3,\)"):
        Joint(mixture(), stripes()).operator(half())
    with pytest.raises(ValueError, match="where both models are Gaussian mixtures"):
        Joint(Joint(mixture(), stripes()), stripes()).mixture()
