"""The exact map of Gaussian data. Methods: gaussian-map, exact-map (against which it is held)."""

from __future__ import annotations

import pytest
import torch

from fewstep.core.prediction import expand
from fewstep.core.student import Student
from fewstep.denoisers.exact_map import ExactMap
from fewstep.denoisers.gaussian_map import GaussianMap
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64
PROCESSES = [EDM(), VP(), Flow()]
ROOT = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
COVARIANCE, MEAN = ROOT @ ROOT.mT / 6 + 0.01 * torch.eye(6, dtype=F64), torch.linspace(-1, 1, 6, dtype=F64).view(2, 3)
X = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(1), dtype=F64)


def every_way(process):
    """States, and times t and s: pure noise, clean, towards both, and s = t."""
    at = [process.t_max, process.time(-0.5), process.time(1.5), process.t_zero]
    pairs = [(0, 3), (0, 1), (1, 2), (2, 3), (2, 1), (3, 3), (1, 1)]
    t, s = (torch.tensor([at[pair[i]] for pair in pairs], dtype=F64) for i in (0, 1))
    return X * (expand(process.sigma(t), X) + 0.5), t, s


def jump(process, x, t, s, g):
    """DDIM's step."""
    a, b, c, d = (expand(v, x) for v in (process.alpha(t), process.sigma(t), process.alpha(s), process.sigma(s)))
    return d / b * x + (c - a * d / b) * g


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_its_answer_takes_ddim_to_the_flow(process):
    model = GaussianMap(MEAN, COVARIANCE, process)
    x, t, s = every_way(process)
    g = model(x, t, to=s).x0
    some = process.sigma(t) > 0
    landed = jump(process, x[some], t[some], s[some], g[some])
    torch.testing.assert_close(landed, model.flow(x, t, s)[some], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(g[~some], x[~some])  # from the clean end to itself
    # With the mixture's posterior mean where s is t.
    mean = GaussianMixture(torch.ones(1), MEAN[None], COVARIANCE[None], process)(x, t).x0
    torch.testing.assert_close(model(x, t).x0, mean, rtol=1e-11, atol=1e-11)
    none = torch.full_like(t, torch.nan)
    assert torch.equal(model(x, t, to=none).x0, model(x, t).x0) and torch.equal(model(x, t, to=t).x0, model(x, t).x0)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_two_jumps_are_one(process):
    model = GaussianMap(MEAN, COVARIANCE, process)
    t, u, s = (torch.tensor(v, dtype=F64) for v in (process.t_max, process.time(0.2), process.t_zero))
    x = X * process.sigma(process.t_max)
    middle = jump(process, x, t, u, model(x, t, to=u).x0)
    ends = jump(process, middle, u, s, model(middle, u, to=s).x0), jump(process, x, t, s, model(x, t, to=s).x0)
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)
    assert float((jump(process, x, t, s, model(x, t).x0) - ends[1]).abs().max()) > 0.1  # one step of DDIM


def test_towards_its_own_time_it_is_the_mean():
    process = EDM()
    model, t = GaussianMap(MEAN, COVARIANCE, process), torch.tensor(1.7, dtype=F64)
    near, mean = model(X, t, to=t * (1 - 1e-6)).x0, model(X, t).x0
    assert 1e-9 < float((near - mean).abs().max()) < 1e-6


def test_the_ways_to_answer():
    process, t = VP(), torch.tensor(0.7, dtype=F64)
    model, leap, mean = (GaussianMap(MEAN, COVARIANCE, process, kind) for kind in ("map", "jump", "denoiser"))
    clean = torch.full((7,), process.t_zero, dtype=F64)
    assert torch.equal(leap(X, t).x0, model(X, t, to=clean).x0) and torch.equal(mean(X, t).x0, model(X, t).x0)
    torch.testing.assert_close(leap(X, t).x0, model.flow(X, t, clean), rtol=1e-12, atol=1e-12)
    assert list(model.conditions) == ["to"] and not leap.conditions and not mean.conditions
    assert (leap.student, mean.student) == (Student("jump", "gaussian-map"), None)


def test_its_parameters_learn_the_law():
    """The likelihood's gradient is 0 at the moments of the data, and not beside them."""
    model = GaussianMap(MEAN, COVARIANCE, VP())
    x = model.sample(4000, seed=2)
    centred = x.flatten(1) - x.flatten(1).mean(0)
    fitted = GaussianMap(x.mean(0), centred.mT @ centred / len(x), VP())
    for one, least, most in ((fitted, 0.0, 1e-12), (model, 1e-3, 1.0)):
        gradients = torch.autograd.grad(one.log_likelihood(x).mean(), list(one.parameters()))
        assert least <= max(float(g.abs().max()) for g in gradients) < most


def test_bad_input():
    with pytest.raises(ValueError, match="did you mean 'jump'"):
        GaussianMap(MEAN, 1.0, VP(), "jumps")
    with pytest.raises(ValueError, match=r"covariance must be symmetric \(6, 6\), \(6,\) or a number"):
        GaussianMap(MEAN, torch.ones(3, 3), VP())
    with pytest.raises(ValueError, match="positive definite"):
        GaussianMap(MEAN, torch.zeros(6), VP())


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
def test_it_is_the_integrated_map_of_a_mixture_of_one(process):
    mixture = GaussianMixture(torch.ones(1), MEAN[None], COVARIANCE[None], process)
    x, t, s = every_way(process)
    found, exact = ExactMap(mixture, 24)(x, t, to=s).x0, GaussianMap(MEAN, COVARIANCE, process)(x, t, to=s).x0
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-8)
