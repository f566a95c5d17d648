"""Every kind of prediction into every other, against the definitions on a known clean sample and noise."""

from __future__ import annotations

import itertools

import pytest
import torch

from fewstep.core.prediction import KINDS, Prediction, coefficients, conversion, scales
from fewstep.processes.cosine import Cosine
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import VP, SubVP

F64 = torch.float64
PROCESSES = [VP(), SubVP(), Cosine(), VE(), EDM(), Flow(), Discrete.linear(steps=40)]
PAIRS = list(itertools.product(KINDS, KINDS))


def known(process, batch=3, dtype=F64):
    """x0, eps, times inside the clock (B,), and the definition of every kind."""
    generator = torch.Generator().manual_seed(3)
    x0, eps = torch.randn(2, batch, 2, 5, generator=generator, dtype=F64)
    t = process.t_min + torch.linspace(0.15, 0.85, batch, dtype=F64) * (process.t_max - process.t_min)
    alpha, sigma, dalpha, dsigma = (c.reshape(-1, 1, 1) for c in scales(process, t))
    values = {
        "x0": x0,
        "eps": eps,
        "v": alpha * eps - sigma * x0,
        "velocity": dalpha * x0 + dsigma * eps,
        "score": -eps / sigma,
        "flow": eps - x0,
    }
    return t, alpha * x0 + sigma * eps, values


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
@pytest.mark.parametrize("source,target", PAIRS)
def test_every_kind_to_every_kind(process, source, target):
    t, x, values = known(process)
    prediction = Prediction(values[source], source, x, t, process)
    torch.testing.assert_close(
        prediction.to(target), values[target], rtol=1e-9, atol=1e-9 * float(values[target].abs().max())
    )


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_kind_is_the_same_object(kind):
    t, x, values = known(VP())
    prediction = Prediction(values[kind], kind, x, t, VP())
    assert prediction.to(kind) is values[kind]


def test_properties_are_the_kinds():
    t, x, values = known(VP())
    prediction = Prediction(values["v"], "v", x, t, VP())
    for kind in ("x0", "eps", "v", "velocity", "score"):
        torch.testing.assert_close(getattr(prediction, kind), values[kind])


@pytest.mark.parametrize("source,target", PAIRS)
def test_a_scalar_time_equals_a_time_a_sample(source, target):
    process = VP()
    _, x, values = known(process)
    one = Prediction(values[source], source, x, torch.tensor(0.4, dtype=F64), process).to(target)
    each = Prediction(values[source], source, x, torch.full((3,), 0.4, dtype=F64), process).to(target)
    assert torch.equal(one, each)


def test_velocity_is_the_derivative_of_the_state():
    for process in PROCESSES:
        t, x, values = known(process)
        h = 1e-5 * (process.t_max - process.t_min)
        ahead, behind = (
            process.alpha(u).reshape(-1, 1, 1) * values["x0"] + process.sigma(u).reshape(-1, 1, 1) * values["eps"]
            for u in (t + h, t - h)
        )
        torch.testing.assert_close(values["velocity"], (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)


def test_the_flows_velocity_is_noise_minus_data():
    t, x, values = known(Flow())
    for kind in ("velocity", "flow"):
        torch.testing.assert_close(Prediction(values["x0"], "x0", x, t, Flow()).to(kind), values["eps"] - values["x0"])
        # On another process "flow" keeps that meaning.
    t, x, values = known(VP())
    torch.testing.assert_close(Prediction(values["eps"], "eps", x, t, VP()).to("flow"), values["eps"] - values["x0"])


@pytest.mark.parametrize("source,target", PAIRS)
def test_what_is_finite_at_pure_noise(source, target):
    """At alpha = 0 the state is eps: everything but eps and the score knows x0."""
    x0, eps = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    at = (0.0, 1.0, -1.0, 1.0)
    defined = {kind: c[0] * x0 + c[1] * eps for kind in KINDS for c in [coefficients(kind, *at)]}
    if source in ("eps", "score") and target in ("x0", "v", "velocity", "flow"):
        with pytest.raises(ZeroDivisionError):
            conversion(source, target, *at)
        return
    p, q = conversion(source, target, *at)
    torch.testing.assert_close(p * eps + q * defined[source], defined[target])


@pytest.mark.parametrize("source", ["x0", "eps", "v", "velocity", "score", "flow"])
def test_x0_is_finite_at_the_clean_end(source):
    """At sigma = 0 the state is x0, whatever else is predicted."""
    x0, eps = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    at = (1.0, 0.0, -1.0, 1.0)
    value = (
        torch.zeros_like(eps)
        if source == "score"
        else sum(c * v for c, v in zip(coefficients(source, *at), (x0, eps), strict=True))
    )
    p, q = conversion(source, "x0", *at)
    torch.testing.assert_close(p * x0 + q * value, x0)


@pytest.mark.parametrize(
    "source,target", [("v", "eps"), ("v", "x0"), ("eps", "x0"), ("eps", "v"), ("flow", "eps"), ("score", "x0")]
)
def test_float32_keeps_its_digits_at_small_sigma(source, target):
    process = EDM() if source == "score" else VP()
    t = torch.tensor([process.t_min] * 2, dtype=F64)
    x0, eps = torch.randn(2, 2, 50, generator=torch.Generator().manual_seed(1), dtype=F64)
    c = scales(process, t)
    alpha, sigma = c[0].reshape(-1, 1), c[1].reshape(-1, 1)
    x = alpha * x0 + sigma * eps
    a, b = (u.reshape(-1, 1) for u in coefficients(source, *c))
    value = a * x0 + b * eps
    exact = Prediction(value, source, x, t, process).to(target)
    rounded = Prediction(value.float(), source, x.float(), t, process).to(target)
    assert rounded.dtype == torch.float32
    assert float((rounded - exact).abs().max() / exact.abs().max()) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_stands_for_a_kind_without_a_name(kind):
    """0.3 x0 - 0.8 eps to every kind and back, and the pair of a kind is that kind."""
    own, levels = (0.3, -0.8), (0.9, 0.4, -0.5, 0.7)
    (p, q), (back_p, back_q) = conversion(own, kind, *levels), conversion(kind, own, *levels)
    a, b = coefficients(kind, *levels)
    assert (p * 0.9 + q * 0.3, p * 0.4 - q * 0.8) == pytest.approx((a, b), abs=1e-14)
    assert (back_p + back_q * p, back_q * q) == pytest.approx((0, 1), abs=1e-14)
    assert conversion((a, b), own, *levels) == pytest.approx((back_p, back_q), abs=1e-14)


def test_an_unknown_kind_is_named():
    t, x, values = known(VP())
    with pytest.raises(ValueError, match="unknown prediction kind 'epsilon': did you mean 'eps'"):
        Prediction(values["x0"], "x0", x, t, VP()).to("epsilon")
