"""Bridge processes against their stochastic differential equations, their papers' formulas and each other.

Methods: ddbm, goub, rdbm, resshift, mean-reverting, ouve, rddm, residual, resfusion.
"""

from __future__ import annotations

import json
import math

import pytest
import torch

from fewstep.core.process import process_from_config
from fewstep.processes.cosine import Cosine
from fewstep.processes.ddbm import DDBM
from fewstep.processes.flow import Flow
from fewstep.processes.mean_reverting import MeanReverting
from fewstep.processes.ouve import OUVE
from fewstep.processes.rdbm import GOUB, RDBM
from fewstep.processes.rddm import RDDM, Residual
from fewstep.processes.resfusion import Resfusion
from fewstep.processes.resshift import ResShift
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import VP

F64 = torch.float64
PROCESSES = [
    DDBM(),
    DDBM(EDM()),
    DDBM(VE(sigma_max=5.0)),
    GOUB(),
    RDBM(),
    ResShift(),
    ResShift(kappa=0.5, eta_max=1.0),
    MeanReverting(),
    MeanReverting(schedule="linear"),
    MeanReverting(schedule="constant"),
    OUVE(),
    RDDM(),
    RDDM(residual=3.0, power=0.5, noise=2.0),
    Residual(VP()),
    Residual(Flow()),
    Resfusion(),
    Resfusion(Cosine()),
]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.name}-{PROCESSES.index(p)}")
PINNED = [p for p in PROCESSES if p.scale(p.t_max) == 0]


def inside(process, n: int = 77) -> torch.Tensor:
    return process.t_min + torch.linspace(0.0037, 0.9963, n, dtype=F64) * (process.t_max - process.t_min)


@each
def test_the_coordinates_are_a_process(process):
    """Derivatives by differences, log-SNR, its inverse, the inverse's derivative, and both ends."""
    t, h = inside(process), 1e-6 * (process.t_max - process.t_min)
    for f, df in ((process.alpha, process.dalpha), (process.sigma, process.dsigma)):
        largest = float(df(t).abs().max())
        torch.testing.assert_close(df(t) / largest, (f(t + h) - f(t - h)) / (2 * h * largest), rtol=1e-6, atol=1e-7)
    level = process.log_snr(t)
    torch.testing.assert_close(level, (process.alpha(t) / process.sigma(t)).log(), rtol=1e-12, atol=1e-12)
    assert bool((level.diff() < 0).all())
    torch.testing.assert_close(process.time(level), t, rtol=1e-10, atol=1e-12)
    u, v = t.clone().requires_grad_(True), level.clone().requires_grad_(True)
    slope = torch.autograd.grad(process.log_snr(u).sum(), u)[0]
    inverse = torch.autograd.grad(process.time(v).sum(), v)[0]
    torch.testing.assert_close(slope * inverse, torch.ones_like(t), rtol=1e-9, atol=0)
    assert (process.alpha(process.t_zero), process.sigma(process.t_zero)) == (1.0, 0.0)
    assert process.log_snr(process.t_zero) == math.inf and process.time(math.inf) == process.t_zero
    assert process.time(process.log_snr(process.t_max)) == pytest.approx(process.t_max, abs=1e-12)
    assert all(math.isfinite(f(process.t_max)) for f in (process.dalpha, process.dsigma))
    assert process_from_config(json.loads(json.dumps(process.config()))) == process


@each
def test_both_ends_in_data_and_picture(process):
    """At t_zero the data alone; at t_max no data (but for what the paper leaves), and the picture."""
    end = process.t_zero
    assert (process.a(end), process.b(end), process.c(end)) == pytest.approx((1.0, 0.0, 0.0), abs=1e-15)
    last = process.t_max
    left = {"mean-reverting": 0.005, "ouve": math.exp(-1.5), "resshift": 1.0 - getattr(process, "eta_max", 1.0)}
    expected = process.base.alpha(1.0) if process == Residual(VP()) else left.get(process.name, 0.0)
    assert process.a(last) == pytest.approx(expected, abs=1e-12)
    if process in PINNED:
        assert (process.a(last), process.c(last)) == (0.0, 0.0)
        assert process.b(last) == pytest.approx(1.0, abs=1e-12)
        assert (process.alpha(last), process.sigma(last)) == (0.0, 1.0)
    total = process.a(inside(process)) + process.b(inside(process))
    if process.centre == 1:
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-14, atol=0)


@each
def test_state_and_coordinates_are_inverse_and_give_the_three_terms(process):
    x0, y, eps = torch.randn(3, 5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    t = inside(process, 5)
    u0 = x0 - process.centre * y
    u = process.alpha(t)[:, None, None] * u0 + process.sigma(t)[:, None, None] * eps
    x = process.state(u, y, t)
    terms = sum(f(t)[:, None, None] * value for f, value in ((process.a, x0), (process.b, y), (process.c, eps)))
    torch.testing.assert_close(x, terms, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(process.coordinates(x, y, t), u, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("base", [VP(0.1, 2.1), EDM(), VE(sigma_max=5.0)], ids=lambda p: p.name)
def test_ddbm_coefficients_are_the_papers(base):
    process = DDBM(base)
    t = inside(process)
    s = process.base_time(t)
    alpha, sigma, alpha_t, sigma_t = base.alpha(s), base.sigma(s), base.alpha(base.t_max), base.sigma(base.t_max)
    ratio = (alpha_t / sigma_t) ** 2 / (alpha / sigma) ** 2  # SNR_T / SNR_t
    torch.testing.assert_close(process.b(t), ratio * alpha / alpha_t, rtol=1e-8, atol=1e-14)
    torch.testing.assert_close(process.a(t), alpha * (1 - ratio), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(process.c(t) ** 2, sigma**2 * (1 - ratio), rtol=1e-8, atol=1e-12)
    # y drawn from the base's own end: the base itself.
    torch.testing.assert_close(process.a(t) + process.b(t) * alpha_t, alpha, rtol=1e-10, atol=0)
    variance = process.c(t) ** 2 + (process.b(t) * sigma_t) ** 2
    torch.testing.assert_close(variance, sigma**2, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    "base", [VP(0.1, 2.1), pytest.param(EDM(sigma_max=3.0), marks=pytest.mark.slow)], ids=lambda p: p.name
)
def test_ddbm_moments_follow_the_sde_with_the_h_transform(base):
    """dx = (f x + g^2 h) ds + g dw, h = grad log p(x_T = y | x): a, b, c^2 by Runge-Kutta in the base's time.

    `p(y | x_s)` is normal with mean `(alpha_T / alpha_s) x` and variance `sigma_T^2 - (alpha_T / alpha_s)^2 sigma_s^2`.
    """
    process, end = DDBM(base), base.t_max
    alpha_t, sigma_t = base.alpha(end), base.sigma(end)

    def slope(s: float, m: torch.Tensor) -> torch.Tensor:
        gain = alpha_t / base.alpha(s)
        pull = base.diffusion2(s) * gain / (sigma_t**2 - (gain * base.sigma(s)) ** 2)
        linear = base.drift(s) - pull * gain
        a, b, v = m.unbind()
        return torch.stack([linear * a, linear * b + pull, 2 * linear * v + base.diffusion2(s)])

    s, t = base.t_min, process.t_min
    m = torch.tensor([process.a(t), process.b(t), process.c(t) ** 2], dtype=F64)
    n = 1000
    h = (0.95 * end - s) / n
    for i in range(n):
        s = base.t_min + i * h
        k1 = slope(s, m)
        k2 = slope(s + h / 2, m + h / 2 * k1)
        k3 = slope(s + h / 2, m + h / 2 * k2)
        m = m + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(s + h, m + h * k3))
    ratio = (base.sigma(0.95 * end) / base.alpha(0.95 * end)) / process.k
    t = 2 / math.pi * math.asin(ratio)
    expected = torch.tensor([process.a(t), process.b(t), process.c(t) ** 2], dtype=F64)
    torch.testing.assert_close(m, expected, rtol=1e-6, atol=1e-7)


def test_ddbm_drift_is_the_papers():
    """dx/ds = f x - g^2 (score / 2 - h) of the bridge, against x moved by the velocity of its coordinates."""
    process = DDBM()
    base, x0, y = process.base, 0.7, -0.4
    alpha_t, sigma_t = base.alpha(1.0), base.sigma(1.0)
    for t in (0.2, 0.5, 0.9):
        s, step = float(process.base_time(torch.tensor(t, dtype=F64))), 1e-6
        x = process.a(t) * x0 + process.b(t) * y + process.c(t) * 1.3
        score = -1.3 / process.c(t)  # of q(x | x0, y)
        gain = alpha_t / base.alpha(s)
        h = gain * (y - gain * x) / (sigma_t**2 - (gain * base.sigma(s)) ** 2)
        wanted = base.drift(s) * x - base.diffusion2(s) * (score / 2 - h)
        after, before = (process.a(u) * x0 + process.b(u) * y + process.c(u) * 1.3 for u in (t + step, t - step))
        ds = float(process.base_time(torch.tensor(t + step, dtype=F64)))
        ds -= float(process.base_time(torch.tensor(t - step, dtype=F64)))
        assert (after - before) / ds == pytest.approx(wanted, rel=1e-7)


def test_goub_is_the_sinh_bridge_and_its_limits():
    process = GOUB(theta=1.7, spread=0.6)
    t = inside(process)
    s = process.integral(t)
    sinh = math.sinh(1.7)
    torch.testing.assert_close(process.a(t), torch.sinh(1.7 - s) / sinh, rtol=1e-10, atol=1e-14)
    variance = 2 * 0.36 * torch.sinh(s) * torch.sinh(1.7 - s) / sinh
    torch.testing.assert_close(process.c(t) ** 2, variance, rtol=1e-10, atol=1e-14)
    # theta to 0 with 2 theta spread^2 = 1: the Brownian bridge, s / theta the share of time.
    brown = GOUB(theta=1e-6, spread=math.sqrt(0.5e6))
    share = brown.integral(t) / 1e-6
    torch.testing.assert_close(brown.a(t), 1 - share, rtol=0, atol=1e-6)
    torch.testing.assert_close(brown.c(t) ** 2, share * (1 - share), rtol=0, atol=1e-6)
    # The variance-exploding bridge with sigma^2 = time is the same one.
    ve = DDBM(EDM(sigma_min=1e-3, sigma_max=1.0))
    torch.testing.assert_close(ve.a(t), brown.a(t), rtol=0, atol=1e-6)
    torch.testing.assert_close(ve.c(t), brown.c(t), rtol=0, atol=1e-6)
    # spread 1: a and c of the variance-preserving bridge; e^-theta is its alpha at the end.
    vp = DDBM(VP(0.1, 2.1))
    ou = GOUB(theta=-math.log(VP(0.1, 2.1).alpha(1.0)), spread=1.0)
    torch.testing.assert_close(ou.a(t), vp.a(t), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(ou.c(t), vp.c(t), rtol=1e-8, atol=1e-12)
    # RDBM has the coefficients of GOUB; its noise alone differs.
    rdbm = RDBM(theta=1.7, spread=0.6)
    torch.testing.assert_close(rdbm.c(t), process.c(t))
    assert rdbm.modulated and not process.modulated
    assert not rdbm.start(lambda draw: torch.ones(2, 3)).any()


def test_resshift_is_the_papers_chain():
    """Equal to their schedule: sqrt(eta_k) = sqrt(eta_1) b0^beta_k, beta_k = ((k-1)/(T-1))^p (T-1)."""
    process, steps, power = ResShift(), 15, 0.3
    eta_1, eta_t = 4e-4, 0.999
    b0 = math.exp(math.log(eta_t / eta_1) / (2 * (steps - 1)))
    times = process.grid(steps, power)
    assert times[-1] == process.t_zero and len(times) == steps + 1
    for k, t in zip(range(steps, 0, -1), times, strict=False):
        root = math.sqrt(eta_1) * b0 ** (((k - 1) / (steps - 1)) ** power * (steps - 1))
        assert process.b(t) == pytest.approx(root**2, rel=1e-12)
        assert process.a(t) == pytest.approx(1 - root**2, rel=1e-12)
        assert process.c(t) == pytest.approx(2.0 * root, rel=1e-12)
    assert process.grid(1) == [1.0, -1.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_mean_reverting_moments_follow_the_sde(schedule):
    """a' = -theta a, v' = -2 theta v + 2 spread^2 theta, with theta as the paper's schedules have it."""
    process = MeanReverting(spread=0.3, remains=0.01, schedule=schedule)

    def raw(t: torch.Tensor) -> torch.Tensor:
        w = 0.5 * math.pi * (t + 0.008) / 1.008
        rest = torch.cos(w) ** 2 / math.cos(0.5 * math.pi * 0.008 / 1.008) ** 2
        return {"cosine": 1 - rest, "linear": t, "constant": torch.ones_like(t)}[schedule]

    grid = torch.linspace(0, 1, 20001, dtype=F64)
    theta = raw(grid)
    whole = torch.trapezoid(theta, grid)
    theta = theta * (-math.log(0.01) / whole)
    s = torch.cumulative_trapezoid(theta, grid)
    at = torch.arange(1000, 20000, 1000)
    torch.testing.assert_close(process.alpha(grid[at]), (-s[at - 1]).exp(), rtol=1e-7, atol=0)
    t = grid[at]
    torch.testing.assert_close(-process.drift(t), theta[at], rtol=1e-7, atol=0)
    torch.testing.assert_close(process.diffusion2(t), 2 * 0.09 * theta[at], rtol=1e-7, atol=0)
    assert process.alpha(1.0) == pytest.approx(0.01) and process.sigma(1.0) == pytest.approx(0.3, rel=1e-4)


def test_the_cosine_schedule_keeps_its_digits_near_the_data():
    process = MeanReverting()
    small = torch.tensor([1e-4, 1e-6, 1e-8], dtype=F64)
    ratio = process.sigma(small) / small  # has a limit, because theta is linear there
    assert float(ratio[2]) > 0
    torch.testing.assert_close(ratio[1], ratio[2], rtol=1e-4, atol=0)
    torch.testing.assert_close(process.time(process.log_snr(small)), small, rtol=1e-10, atol=0)


def test_ouve_moments_follow_the_sde():
    process = OUVE(gamma=1.2, sigma_min=0.04, sigma_max=0.6)
    t, ratio = inside(process), 0.6 / 0.04
    torch.testing.assert_close(process.drift(t), torch.full_like(t, -1.2), rtol=1e-10, atol=0)
    g = 0.04 * ratio**t * math.sqrt(2 * math.log(ratio))
    torch.testing.assert_close(process.diffusion2(t), g**2, rtol=1e-8, atol=0)
    variance = 0.04**2 * (ratio ** (2 * t) - torch.exp(-2.4 * t)) * math.log(ratio) / (1.2 + math.log(ratio))
    torch.testing.assert_close(process.sigma(t) ** 2, variance, rtol=1e-10, atol=0)


def test_rddm_is_the_integral_of_its_rates():
    """Rates proportional to (1 - t)^(p - 1) and, of the variance, to t^(2 q - 1)."""
    process = RDDM(residual=2.0, power=1.0, noise=0.1)
    grid = torch.linspace(0, 1, 10001, dtype=F64)
    residual = torch.cumulative_trapezoid(1 - grid, grid) * 2
    variance = torch.cumulative_trapezoid(grid, grid) * 2 * 0.01
    torch.testing.assert_close(process.b(grid[1:]), residual, rtol=0, atol=1e-12)
    torch.testing.assert_close(process.c(grid[1:]) ** 2, variance, rtol=0, atol=1e-12)


def test_rddm_of_ddpms_coefficients_takes_ddims_steps():
    """x_s = x_t - (A_t - A_s) res - (B_t - B_s) eps with A = 1 - sqrt(alpha_bar), B = sqrt(1 - alpha_bar), y = 0."""
    process = Residual(VP())
    generator = torch.Generator().manual_seed(0)
    x = ours = torch.randn(4, 3, generator=generator, dtype=F64)
    y = torch.zeros_like(x)
    times = torch.linspace(1, 1e-3, 9, dtype=F64)
    for t, s in zip(times, times[1:], strict=False):
        eps = torch.tanh(ours) + 0.1 * ours.flip(0)  # any network
        alpha_t, sigma_t, alpha_s, sigma_s = VP().alpha(t), VP().sigma(t), VP().alpha(s), VP().sigma(s)
        x = alpha_s * (x - sigma_t * eps) / alpha_t + sigma_s * eps  # DDIM
        x0 = (ours - process.b(t) * y - process.c(t) * eps) / process.a(t)
        ours = ours - (process.b(t) - process.b(s)) * (y - x0) - (process.c(t) - process.c(s)) * eps
        torch.testing.assert_close(ours, x, rtol=0, atol=1e-10)


def test_resfusion_starts_where_the_data_cancel():
    process = Resfusion()
    half = process.t_max
    assert VP().alpha(half) == pytest.approx(0.5, abs=1e-12)
    assert abs(process.a(half)) < 1e-12 and process.alpha(half) == 0
    assert process.b(half) == pytest.approx(0.5) and process.c(half) == pytest.approx(math.sqrt(0.75))
    t = inside(process)
    torch.testing.assert_close(process.a(t), 2 * VP().alpha(t) - 1, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(process.b(t), 1 - VP().alpha(t), rtol=1e-10, atol=0)


def test_resfusions_oracle_returns_the_data():
    """DDPM's update with eps replaced by `eps + (1 - sqrt(alpha)) sqrt(1 - alpha_bar) / beta R`, from half way."""
    process = Resfusion()
    x0, y, eps = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=F64)
    residual = y - x0
    times = torch.linspace(process.t_max, 0.0, 13, dtype=F64)
    x = process.b(times[0]) * y + process.c(times[0]) * eps
    for t, s in zip(times, times[1:], strict=False):
        bar_t, bar_s = VP().alpha(t) ** 2, VP().alpha(s) ** 2
        alpha = bar_t / bar_s
        noise = (x - bar_t.sqrt() * x0 - (1 - bar_t.sqrt()) * residual) / (1 - bar_t).sqrt()
        resnoise = noise + (1 - alpha.sqrt()) * (1 - bar_t).sqrt() / (1 - alpha) * residual
        x = (x - (1 - alpha) / (1 - bar_t).sqrt() * resnoise) / alpha.sqrt()  # the mean of the posterior
    torch.testing.assert_close(x, x0, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: DDBM(Flow()), "'flow' ends at alpha = 0"),
        (lambda: DDBM(ResShift()), "not on the bridge 'resshift'"),
        (lambda: Residual(OUVE()), "'ouve' is a bridge already"),
        (lambda: GOUB(theta=0.0), "goub needs 0 < theta <= 100"),
        (lambda: RDBM(spread=-1.0), "rdbm needs 0 < theta <= 100, spread > 0"),
        (lambda: ResShift(eta_max=1.5), "resshift needs 0 < eta_min < eta_max <= 1"),
        (lambda: ResShift(kappa=0.0), "resshift needs"),
        (lambda: ResShift().grid(0), "at least 1 step and a positive power, got 0"),
        (lambda: MeanReverting(schedule="cos"), "unknown schedule 'cos': did you mean 'cosine'"),
        (lambda: MeanReverting(remains=1.0), "0 < remains < 1"),
        (lambda: OUVE(sigma_min=1.0), "ouve needs 0 < sigma_min < sigma_max"),
        (lambda: RDDM(residual=0.5), "rddm needs residual >= 1"),
        (lambda: RDDM(noise=math.nan), "rddm needs"),
        (lambda: Resfusion(EDM()), "variance-preserving base, got 'edm'"),
        (lambda: Resfusion(VP(0.1, 1.0)), "starts at alpha = 1/2, and the base ends at 0.76"),
    ],
)
def test_wrong_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()
