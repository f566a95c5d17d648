"""Any callable as a denoiser. Method: wrap."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.core.methods import find
from fewstep.core.prediction import KINDS
from fewstep.denoisers.fixed import Fixed
from fewstep.denoisers.wrap import wrap
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64
X = torch.linspace(-2, 2, 15, dtype=F64).reshape(3, 5)
T = torch.tensor([0.2, 0.5, 0.9], dtype=F64)


def test_it_is_registered():
    assert find("wrap") is wrap


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_means_the_same_denoiser(make_mixture, kind, sign):
    exact = make_mixture(VP(), (5,))

    def f(x, t):
        value = exact(x, t).to(kind)
        return -value if sign else value

    made = wrap(f, VP(), sign + kind, shape=(5,))
    torch.testing.assert_close(made(X, T).x0, exact(X, T).x0, rtol=1e-9, atol=1e-9)
    plan = fs.plan(VP(), "dpmpp-2m", steps=4)
    noise = torch.randn(3, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plan(made, noise, dtype=F64), plan(exact, noise, dtype=F64), rtol=1e-7, atol=1e-7)


def test_what_the_callable_is_given():
    process, seen = VP(), {}

    def f(x, t):
        seen["x"], seen["t"] = x, t
        return x

    alpha, sigma = process.alpha(T), process.sigma(T)
    times = {
        "t": T,
        "sigma": sigma / alpha,
        "log_sigma": (sigma / alpha).log(),
        "log_snr": (alpha / sigma).log(),
        "c_noise": (sigma / alpha).log() / 4,
    }
    for name, value in times.items():
        wrap(f, process, time=name)(X, T)
        torch.testing.assert_close(seen["t"], value, rtol=1e-9, atol=1e-9)
    wrap(f, process, time=lambda t: 999 * t)(X, T[1])
    torch.testing.assert_close(seen["t"], torch.full((3,), 499.5, dtype=F64))
    scales = {
        "state": torch.ones(3, dtype=F64),
        "alpha": 1 / alpha,
        "vp": (alpha**2 + sigma**2) ** -0.5,
        "edm": (sigma**2 + alpha**2 * 0.09) ** -0.5,
    }
    for name, value in scales.items():
        wrap(f, process, scale_input=name, data_std=0.3)(X, T)
        torch.testing.assert_close(seen["x"], value[:, None] * X)


def test_times_are_finite_at_both_ends():
    seen = []
    for name in ("sigma", "log_sigma", "log_snr", "c_noise"):
        model = wrap(lambda x, t: seen.append(t) or torch.zeros_like(x), Flow(), "velocity", (5,), time=name)
        model(X, torch.tensor(1.0, dtype=F64))
    assert all(bool(torch.isfinite(t).all()) for t in seen) and len(seen) == 4


def test_answers_of_many_forms():
    def model(answer, **options):
        return wrap(lambda x, t: answer(2 * x), VP(), **options)(X, T).value

    for answer in (
        lambda y: y,
        lambda y: (y, "more"),
        lambda y: SimpleNamespace(sample=y),
        lambda y: SimpleNamespace(prediction=y),
    ):
        assert torch.equal(model(answer), 2 * X)
    assert torch.equal(model(lambda y: SimpleNamespace(x0=y), predicts="x0"), 2 * X)
    with pytest.raises(ValueError, match=r"answers with \.x0, not eps: say predicts='x0'"):
        model(lambda y: SimpleNamespace(x0=y))
    with pytest.raises(ValueError, match="must answer a tensor.*got dict"):
        model(lambda y: {"x": y})
    twice = torch.cat([X, X + 1], dim=1)
    assert torch.equal(wrap(lambda x, t: twice, VP(), drop_variance=True)(X, T).value, X)
    with pytest.raises(ValueError, match="say drop_variance=True"):
        wrap(lambda x, t: twice, VP())(X, T)
    with pytest.raises(ValueError, match="half of 10 channels, the callable answered shape"):
        wrap(lambda x, t: x, VP(), drop_variance=True)(X, T)


def test_a_module_brings_its_dtype_and_its_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
            self.drop = nn.Dropout(0.5)

        def forward(self, x, t, label=None):
            assert x.dtype == torch.bfloat16 and t.dtype == torch.float32
            return self.drop(x * self.weight) + (0 if label is None else label[:, None])

    net = Net()
    model = wrap(net, EDM(), shape=(5,), conditions={"label": Label(4)})
    assert not net.training and model.dtype == torch.bfloat16 and sum(p.numel() for p in model.parameters()) == 5
    assert len(model.state_dict()) == 1 and model.network is net
    assert model(X.float(), T).value.dtype == torch.float32
    assert fs.sample(model, 2, steps=3, label=1).shape == (2, 5)
    around = wrap(lambda x, t: net(x, t), EDM(), network=net)
    assert around.dtype == torch.bfloat16 and around.network is net
    assert model.describe()["callable"] == "Net" and model.describe()["predicts"] == "eps"


def test_a_condition_can_be_fixed():
    model = wrap(lambda x, t, label: x + label[:, None], EDM(), "x0", (5,), {"label": Label(4)})
    given = Fixed(model, label=2)
    assert given.conditions == {} and given.shape == (5,)
    assert torch.equal(given(X, T).value, X + 2)
    assert torch.equal(Fixed(model)(X, T).value, X + 4)  # none: the index behind the last
    with pytest.raises(ValueError, match="label 9 is out of range"):
        Fixed(model, label=9)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"process": "vp"}, "process must be a process"),
        ({"predicts": "noise"}, "unknown prediction kind 'noise'"),
        ({"time": "sigmas"}, "unknown time 'sigmas': did you mean 'sigma'"),
        ({"scale_input": "edn"}, "unknown input scale 'edn': did you mean 'edm'"),
        ({"data_std": 0.0}, "data_std must be positive, got 0"),
        ({"function": 3}, "function must be a function"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        wrap(**({"function": lambda x, t: x, "process": VP()} | options))


def test_a_denoiser_needs_no_wrapping(smooth):
    with pytest.raises(ValueError, match="a denoiser already"):
        wrap(smooth, VP())
