"""Forward processes against themselves (derivatives, inverse, limits), their papers, and their JSON.

Methods: vp, sub-vp, cosine, discrete, zero-terminal-snr, ve, edm, flow, shifted.
"""

from __future__ import annotations

import json
import math

import pytest
import torch

from fewstep.core.methods import find, methods
from fewstep.core.process import process_from_config
from fewstep.processes.cosine import Cosine
from fewstep.processes.discrete import Discrete, zero_terminal_snr
from fewstep.processes.flow import Flow
from fewstep.processes.reflected import Reflected
from fewstep.processes.shifted import Shifted
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import VP, SubVP

F64 = torch.float64
BETAS = [1e-3 + 1e-3 * i for i in range(40)]
PROCESSES = [
    VP(),
    VP(beta_min=0.5, beta_max=0.5),
    SubVP(),
    Cosine(),
    Cosine(t_max=1.0),
    VE(),
    EDM(),
    Flow(),
    Discrete.linear(steps=40),
    Discrete.from_betas(BETAS, zero_terminal=True),
    Reflected(),
    Shifted(Flow(), 3.0),
    Shifted(VP(), 0.5),
    Shifted(Cosine(t_max=1.0), 2.0),
    Shifted(Discrete.from_betas(BETAS, zero_terminal=True), 2.0),
]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.name}-{PROCESSES.index(p)}")


def inside(process, n: int = 77) -> torch.Tensor:
    """Times strictly inside the clock, off the steps of a table."""
    return process.t_min + torch.linspace(0.0037, 0.9963, n, dtype=F64) * (process.t_max - process.t_min)


def test_the_classic_processes_are_registered():
    """What has required arguments or limits of its own; the others enter tests/contracts/test_processes.py."""
    known = {type(p) for p in PROCESSES} | {zero_terminal_snr}
    assert known <= {find(method.name) for method in methods("processes")}


@each
@pytest.mark.parametrize("function", ["alpha", "sigma"])
def test_derivatives_by_differences_and_by_autograd(process, function):
    t = inside(process)
    f, df = getattr(process, function), getattr(process, f"d{function}")
    h = 1e-6 * (process.t_max - process.t_min)
    scale = float(df(t).abs().max()) or 1.0
    torch.testing.assert_close(df(t) / scale, (f(t + h) - f(t - h)) / (2 * h) / scale, rtol=2e-6, atol=1e-7)
    u = t.clone().requires_grad_(True)
    value = f(u)
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value.sum(), u)
        torch.testing.assert_close(df(t) / scale, gradient / scale, rtol=1e-8, atol=1e-12)
    else:
        assert bool((df(t) == 0).all())


@each
def test_log_snr_is_the_log_of_the_ratio_and_falls(process):
    t = inside(process, 501)
    torch.testing.assert_close(process.log_snr(t), (process.alpha(t) / process.sigma(t)).log(), rtol=1e-9, atol=1e-9)
    assert bool((process.log_snr(t).diff() < 0).all())
    assert (
        bool((process.alpha(t).diff() <= 0).all())
        and bool((process.sigma(t).diff() >= 0).all())
        or process.name == "shifted"
    )


@each
def test_time_is_the_inverse_of_log_snr(process):
    t = inside(process, 501)
    torch.testing.assert_close(process.time(process.log_snr(t)), t, rtol=1e-9, atol=1e-9)
    u = t[::50].clone().requires_grad_(True)
    slope = torch.autograd.grad(process.log_snr(u).sum(), u)[0]
    level = process.log_snr(t[::50]).detach().requires_grad_(True)
    inverse = torch.autograd.grad(process.time(level).sum(), level)[0]
    torch.testing.assert_close(slope * inverse, torch.ones_like(slope), rtol=1e-6, atol=0)


@each
def test_floats_and_tensors_agree(process):
    for t in inside(process, 5):
        for function in ("alpha", "sigma", "dalpha", "dsigma", "log_snr"):
            value = getattr(process, function)(float(t))
            assert isinstance(value, float) and value == float(getattr(process, function)(t))
    grid = inside(process, 6).reshape(2, 3).float()
    assert process.alpha(grid).shape == (2, 3) and process.alpha(grid).dtype == F64


@each
def test_the_clean_end(process):
    assert process.alpha(process.t_zero) == pytest.approx(1, abs=1e-15)
    assert process.sigma(process.t_zero) == 0
    assert process.log_snr(process.t_zero) == math.inf
    assert process.time(math.inf) == process.t_zero
    assert process.t_zero < process.t_max and process.t_min < process.t_max


@pytest.mark.parametrize(
    "process",
    [p for p in PROCESSES if p.alpha(p.t_max) == 0],
    ids=lambda p: p.name,
)
def test_pure_noise(process):
    assert process.sigma(process.t_max) == pytest.approx(1, abs=1e-15)
    assert process.log_snr(process.t_max) == -math.inf
    assert process.time(-math.inf) == pytest.approx(process.t_max, abs=1e-12)
    assert math.isfinite(process.dalpha(process.t_max)) and process.dalpha(process.t_max) < 0
    assert math.isfinite(process.dsigma(process.t_max))


def test_which_processes_reach_pure_noise():
    assert [p.name for p in PROCESSES if p.alpha(p.t_max) == 0] == [
        "cosine", "flow", "discrete", "shifted", "shifted", "shifted",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "process", [p for p in PROCESSES if p.name in ("vp", "cosine", "discrete")], ids=lambda p: p.name
)
def test_variance_preserving(process):
    t = inside(process)
    torch.testing.assert_close(process.alpha(t) ** 2 + process.sigma(t) ** 2, torch.ones_like(t), rtol=1e-13, atol=0)


@pytest.mark.parametrize("process", [VP(), VP(beta_min=0.3, beta_max=7.0), SubVP()], ids=lambda p: p.name)
def test_vp_against_its_sde(process):
    """Mean and variance of dx = -beta/2 x dt + g dw by Runge-Kutta: m' = -beta m / 2, s' = -beta s + g^2."""

    def beta(t: float) -> float:
        return process.beta_min + t * (process.beta_max - process.beta_min)

    def slope(t: float, m: float, s: float) -> tuple[float, float]:
        integral = process.beta_min * t + 0.5 * (process.beta_max - process.beta_min) * t * t
        g2 = beta(t) * (-math.expm1(-2 * integral) if process.name == "sub-vp" else 1.0)
        return -0.5 * beta(t) * m, -beta(t) * s + g2

    n, t, m, s = 2000, 0.0, 1.0, 0.0
    h = 1 / n
    for i in range(n):
        k1 = slope(t, m, s)
        k2 = slope(t + h / 2, m + h / 2 * k1[0], s + h / 2 * k1[1])
        k3 = slope(t + h / 2, m + h / 2 * k2[0], s + h / 2 * k2[1])
        k4 = slope(t + h, m + h * k3[0], s + h * k3[1])
        m += h / 6 * (k1[0] + 2 * k2[0] + 2 * k3[0] + k4[0])
        s += h / 6 * (k1[1] + 2 * k2[1] + 2 * k3[1] + k4[1])
        t = (i + 1) * h
        if (i + 1) % 400 == 0:
            assert process.alpha(t) == pytest.approx(m, rel=1e-9)
            assert process.sigma(t) == pytest.approx(math.sqrt(s), rel=1e-9)


def test_cosine_against_the_paper():
    """alpha_bar(t) = f(t) / f(0), f(t) = cos((t + s) / (1 + s) pi / 2)^2 (eq. 17)."""
    process = Cosine(s=0.02)

    def f(t: torch.Tensor) -> torch.Tensor:
        return torch.cos((t + 0.02) / 1.02 * math.pi / 2) ** 2

    t = inside(process)
    torch.testing.assert_close(process.alpha(t) ** 2, f(t) / f(torch.zeros(1, dtype=F64)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("process", [VP(), SubVP(), Cosine()], ids=lambda p: p.name)
def test_sigma_keeps_its_digits_near_the_data(process):
    """`sigma^2 / t` has a limit: 1 - alpha^2 computed by a difference would lose it."""
    small = torch.tensor([1e-8, 1e-10, 1e-12], dtype=F64)
    power = 1 if process.name == "sub-vp" else 2
    ratio = process.sigma(small) ** power / small
    torch.testing.assert_close(ratio, ratio[-1].expand(3), rtol=1e-6, atol=0)
    assert float(ratio[0]) > 0


def test_ve_and_edm():
    ve = VE(sigma_min=0.02, sigma_max=8.0)
    assert [ve.sigma(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([0.02, 0.4, 8.0], rel=1e-14)
    edm = EDM()
    assert (edm.t_max, edm.t_min) == (80.0, 0.002)
    assert [edm.sigma(t) for t in (0.002, 3.0, 80.0)] == [0.002, 3.0, 80.0]
    assert {ve.alpha(0.3), edm.alpha(7.0)} == {1.0}


def test_discrete_equals_its_table_and_interpolates_between():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    table = torch.cumprod(1 - betas, 0)
    process = Discrete.linear()
    steps = torch.arange(1000, dtype=F64)
    torch.testing.assert_close(process.alpha(steps) ** 2, table, rtol=1e-11, atol=0)
    torch.testing.assert_close(process.sigma(steps) ** 2, 1 - table, rtol=1e-10, atol=0)
    between = process.log_snr(steps[:-1] + 0.37)
    assert bool((between < process.log_snr(steps[:-1])).all() and (between > process.log_snr(steps[1:])).all())
    # A smooth interpolant: halfway it is near the cubic through four neighbours.
    y = process.log_snr(steps)
    cubic = (-y[:-3] + 9 * y[1:-2] + 9 * y[2:-1] - y[3:]) / 16
    torch.testing.assert_close(process.log_snr(steps[1:-2] + 0.5)[20:], cubic[20:], rtol=0, atol=2e-5)
    assert process.table_steps == 1000 and (process.t_max, process.t_min) == (999.0, 0.0)


def test_discrete_is_smooth_at_its_steps():
    process = Discrete.linear(steps=40)
    at = torch.arange(1, 39, dtype=F64)
    for f in (process.dalpha, process.dsigma):
        torch.testing.assert_close(f(at - 1e-9), f(at + 1e-9), rtol=1e-6, atol=1e-12)


def test_zero_terminal_snr_is_algorithm_1():
    """Lin et al.: sqrt(alpha_bar) shifted by its last value and scaled to keep its first."""
    table = torch.cumprod(1 - torch.tensor(BETAS, dtype=F64), 0)
    root = table.sqrt()
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    rescaled = torch.tensor(zero_terminal_snr(table.tolist()), dtype=F64)
    torch.testing.assert_close(rescaled, expected, rtol=1e-13, atol=1e-16)
    assert float(rescaled[-1]) == 0.0
    assert float(rescaled[0]) == pytest.approx(float(table[0]), rel=1e-14)
    process = Discrete.from_betas(BETAS, zero_terminal=True)
    torch.testing.assert_close(process.alpha(torch.arange(40, dtype=F64)) ** 2, expected, rtol=1e-10, atol=1e-15)
    half = process.alpha(38.5)
    assert half == pytest.approx(0.5 * math.sqrt(float(expected[-2])), rel=1e-12)


def test_the_shifted_flow_is_the_papers_formula():
    shift = 3.0
    shifted = Shifted(Flow(), shift)
    t = torch.linspace(0, 1, 101, dtype=F64)
    expected = shift * t / (1 + (shift - 1) * t)
    torch.testing.assert_close(shifted.sigma(t), expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(shifted.alpha(t), 1 - expected, rtol=1e-10, atol=1e-15)
    slope = shift / (1 + (shift - 1) * t) ** 2
    torch.testing.assert_close(shifted.dsigma(t), slope, rtol=1e-9, atol=0)


@pytest.mark.parametrize("base", [VP(), EDM(), Discrete.linear(steps=40)], ids=lambda p: p.name)
def test_a_shift_multiplies_sigma_over_alpha(base):
    shifted = Shifted(base, 2.5)
    t = inside(base)
    torch.testing.assert_close(
        shifted.sigma(t) / shifted.alpha(t), 2.5 * base.sigma(t) / base.alpha(t), rtol=1e-8, atol=0
    )


def test_a_shift_is_applied_once():
    with pytest.raises(ValueError, match="already shifted by 3.0: a shift is applied once; shift its base by 6"):
        Shifted(Shifted(Flow(), 3.0), 2.0)


@each
def test_config_round_trips_through_json(process):
    again = process_from_config(json.loads(json.dumps(process.config())))
    assert again == process
    assert again.config() == process.config() == json.loads(json.dumps(process.config()))


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: VP(beta_min=-1.0), "vp needs 0 < beta_min <= beta_max, got -1.0 and 20.0"),
        (lambda: VP(beta_max=math.inf), "vp needs"),
        (lambda: VP(beta_min=math.nan), "vp needs"),
        (lambda: SubVP(t_min=2.0), "0 < t_min < t_max, got 2.0 and 1.0"),
        (lambda: Cosine(t_max=1.5), "cosine needs"),
        (lambda: Cosine(s=math.nan), "cosine needs"),
        (lambda: VE(sigma_min=50.0), "ve needs 0 < sigma_min < sigma_max, got 50.0 and 50.0"),
        (lambda: EDM(sigma_max=math.inf), "edm needs"),
        (lambda: Flow(t_max=1.1), "flow needs 0 < t_min < t_max <= 1, got 0.001 and 1.1"),
        (lambda: Shifted(Flow(), 0.0), "the shift must be a positive number, got 0.0"),
        (lambda: Shifted(Flow(), math.inf), "the shift must be a positive number, got inf"),
        (lambda: Discrete((0.9, 0.5)), "at least 3 steps, got 2"),
        (lambda: Discrete((0.9, 0.9, 0.5)), "must fall strictly"),
        (lambda: Discrete((1.0, 0.9, 0.5)), "from below 1"),
        (lambda: Discrete((0.9, 0.5, math.nan)), "must fall strictly"),
        (lambda: Discrete.from_betas([0.1, 1.0, 0.2]), "betas must be a list of numbers between 0 and 1"),
        (lambda: process_from_config({"beta_min": 1.0}), "needs the key 'process'"),
        (lambda: process_from_config({"process": "vpp"}), "unknown process 'vpp': did you mean 'vp'"),
        (lambda: process_from_config({"process": "vp", "beta": 1.0}), "process 'vp' has no parameter 'beta'"),
    ],
)
def test_wrong_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()
