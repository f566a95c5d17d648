"""ode-likelihood and bits-per-dim against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from sampled import sampled

from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.processes.cosine import Cosine
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import VP
from fewstep.sampling.angle import RUNGE_KUTTA, Angle
from fewstep.sampling.likelihood import bits_per_dim, log_likelihood

F64 = torch.float64


def at(model, x, t: float):
    """The exact log-density at time t."""
    return model.log_likelihood(x, torch.tensor(t, dtype=F64))


def exact(model, x):
    """Of the data with the noise of t_min added."""
    process = model.process
    alpha = process.alpha(process.t_min)
    return at(model, alpha * x, process.t_min) + x[0].numel() * math.log(alpha)


def terminal(model):
    return lambda x: at(model, x, model.process.t_max)


TABLE = Discrete.from_betas([1e-4 + 2e-5 * i for i in range(999)], zero_terminal=True)


@sampled("process, predicts", [VP(), VE(), EDM(), Flow(), Cosine(), TABLE], ["x0", "eps"])
def test_the_exact_trace_agrees_with_the_mixture(process, predicts, make_mixture):
    model = make_mixture(process, (3,), predicts=predicts)
    x = model.sample(7, seed=1)
    if predicts == "eps" and process.alpha(process.t_max) == 0:
        with pytest.raises(ValueError, match="a prediction of 'eps' says nothing about x0"):
            log_likelihood(model, x, trace="exact")
        return
    found = log_likelihood(model, x, 200, trace="exact", prior=terminal(model), data_std=0.9)
    torch.testing.assert_close(found, exact(model, x), atol=1e-4, rtol=0)
    # the noise of t_min is all that is left between it and the data's own density
    torch.testing.assert_close(found, model.log_likelihood(x), atol=5e-3, rtol=0)


def test_priors(make_mixture):
    model = make_mixture(VP())
    x = model.sample(16, seed=1)
    errors = {
        prior: float((log_likelihood(model, x, 240, trace="exact", prior=prior) - exact(model, x)).abs().max())
        for prior in ("start", "terminal")
    }
    assert errors["terminal"] < 1e-4 < 1e-3 < errors["start"] < 3e-2
    flow = make_mixture(Flow())  # alpha = 0 at its end: the three are one
    start, same = (log_likelihood(flow, x[:2], 240, trace="exact", prior=prior) for prior in ("start", "terminal"))
    assert torch.equal(start, same)
    torch.testing.assert_close(start, exact(flow, x[:2]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("solver,order", [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_the_error_falls_at_the_order_of_the_solver(solver, order, smooth):
    x = smooth.sample(6, seed=1)
    wanted = exact(smooth, x)
    stages = len(RUNGE_KUTTA[solver][0])
    errors = []
    for steps in (48, 96):
        found = log_likelihood(
            smooth, x, steps * stages, trace="exact", prior=terminal(smooth), solver=solver, data_std=0.9
        )
        errors.append(float((found - wanted).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


def test_gaussian_data_of_the_frames_deviation_need_one_evaluation():
    model = GaussianMixture(torch.ones(1), torch.zeros(1, 2, 3), 0.3**2, VP())
    x = model.sample(5, seed=1)
    found = log_likelihood(model, x, 1, solver="euler", prior=terminal(model), data_std=0.3)
    torch.testing.assert_close(found, exact(model, x), atol=1e-10, rtol=0)


def test_hutchinson_is_unbiased_within_its_error(make_mixture):
    model = make_mixture(VP(), (3,))
    x = model.sample(1, seed=1).expand(2000, 3).contiguous()  # one point, its trace estimated by each sample's signs
    found = log_likelihood(model, x, 40)
    wanted = log_likelihood(model, x[:1], 40, trace="exact")
    error = float(found.std()) / math.sqrt(len(x))
    assert float(found.std()) > 0.01  # the signs matter
    assert abs(float(found.mean() - wanted[0])) < 4 * error
    four = log_likelihood(model, x, 40, probes=4)
    assert float(four.std()) / float(found.std()) == pytest.approx(0.5, abs=0.05)


def test_a_sample_does_not_depend_on_its_batch(make_mixture):
    model = make_mixture(EDM(), (2, 3))
    x = model.sample(5, seed=1)
    together = log_likelihood(model, x, 40, seed=7)
    alone = torch.cat([log_likelihood(model, x[i : i + 1], 40, seed=7, first=i) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(together, log_likelihood(model, x, 40, seed=8))


def test_bits_per_dim_is_the_change_of_variables(make_mixture):
    model = make_mixture(Flow(), (2, 3))
    x = model.sample(5, seed=1)
    bits = bits_per_dim(model, x, 40, trace="exact")
    torch.testing.assert_close(bits, -log_likelihood(model, x, 40, trace="exact") / (6 * math.log(2)))
    # with levels: the same density at the shifted point, in cells of the step's volume
    step = 2 / 255
    shift = (torch.special.ndtr(Noise(3).normal(0, (5, 2, 3), "cpu", F64)) - 0.5) * step
    assert float(shift.abs().max()) < step / 2
    bits = bits_per_dim(model, x, 40, levels=256, value_range=(-1.0, 1.0), seed=3, trace="exact")
    density = log_likelihood(model, x + shift, 40, trace="exact")
    torch.testing.assert_close(bits, -(density / math.log(2) + 6 * math.log2(step)) / 6)


def test_bits_with_levels_bound_the_bits_of_the_cells():
    """A Gaussian in one dimension, whose cells have known probabilities."""
    std, levels = 0.4, 9
    model = GaussianMixture(torch.ones(1), torch.full((1, 1), 0.1), std**2, Flow(t_min=1e-4))
    values = torch.linspace(-1, 1, levels, dtype=F64)
    step = 0.25
    ends = (values[:, None] + torch.tensor([-0.5, 0.5]) * step - 0.1) / std
    cells = -(torch.special.ndtr(ends[:, 1]) - torch.special.ndtr(ends[:, 0])).log2()
    x = values.repeat_interleave(2000).unsqueeze(1)
    bits = bits_per_dim(model, x, 40, levels=levels, value_range=(-1.0, 1.0), trace="exact", data_std=std)
    mean = bits.view(levels, 2000).mean(1)
    assert bool((mean > cells - 0.01).all())
    # By how much: they are the mean of -log p over the cell, whose standard error is below 0.016.
    z = (values + torch.linspace(-0.5, 0.5, 2001, dtype=F64)[:, None] * step - 0.1) / std
    over = ((z**2 / 2 + math.log(std * math.sqrt(2 * math.pi)) - math.log(step)) / math.log(2)).mean(0)
    assert float((mean - over).abs().max()) < 0.06


class Labelled(Denoiser):
    """Data N(label, 1) with a label as condition."""

    conditions = {"label": Label(3)}

    def __init__(self):
        super().__init__()
        self.process = Flow()

    def forward(self, x, t, label):
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        mean = label.to(x.dtype).unsqueeze(1)
        return Prediction(mean + (alpha / (alpha**2 + sigma**2)) * (x - alpha * mean), "x0", x, t, self.process)


def test_the_condition_reaches_the_model():
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    label = torch.tensor([0, 1, 2, 1])
    found = log_likelihood(Labelled(), x, 100, label=label, trace="exact")
    wanted = -0.5 * (x - label[:, None]).square().sum(1) - math.log(2 * math.pi)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_the_frame_is_the_angle():
    for process in (VP(), EDM(), Flow()):
        frame = Angle(process, 0.7)
        for t in (process.t_min, 0.3, process.t_max):
            assert frame.time(frame.angle(t)) == pytest.approx(t, rel=1e-9)
            assert math.sin(frame.angle(t)) * frame.norm(t) == pytest.approx(process.sigma(t))
            assert math.cos(frame.angle(t)) * frame.norm(t) == pytest.approx(0.7 * process.alpha(t))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"trace": "exakt"}, "unknown trace 'exakt': did you mean 'exact'"),
        ({"prior": "begin"}, "unknown prior 'begin'"),
        ({"solver": "rk"}, "unknown Runge-Kutta method 'rk': did you mean 'rk4'"),
        ({"nfe": 3}, "'rk4' needs 4 evaluations a step, got nfe=3"),
        ({"probes": 0}, "probes must be at least 1, got 0"),
        ({"data_std": -1.0}, "data_std must be positive, got -1.0"),
        ({"label": 1}, "unconditional"),
    ],
)
def test_bad_input(options, message, smooth):
    with pytest.raises(ValueError, match=message):
        log_likelihood(smooth, torch.zeros(2, 2, dtype=F64), **options)


def test_bad_shapes_and_levels(smooth):
    with pytest.raises(ValueError, match=r"samples of shape \(3,\), the model takes \(2,\)"):
        log_likelihood(smooth, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="x must be a float tensor"):
        log_likelihood(smooth, torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="levels must be at least 2"):
        bits_per_dim(smooth, torch.zeros(2, 2), levels=1, value_range=(-1, 1))
    with pytest.raises(ValueError, match="in a value_range"):
        bits_per_dim(smooth, torch.zeros(2, 2), levels=256)
