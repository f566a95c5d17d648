"""Bridge denoisers: the exact one against simulation and closed form under every bridge, and the network's algebra.

Methods: bridge-network, gaussian-bridge.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from sampled import sampled
from torch import Tensor, nn

from fewstep.conditions.label import Label
from fewstep.core.noise import Noise
from fewstep.denoisers.bridge import PREDICTS, BridgeDenoiser, statistics
from fewstep.denoisers.folder import load_model, save_model
from fewstep.denoisers.gaussian_bridge import GaussianBridge
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.networks.mlp import MLP
from fewstep.networks.unet import UNet
from fewstep.processes.ddbm import DDBM
from fewstep.processes.mean_reverting import MeanReverting
from fewstep.processes.ouve import OUVE
from fewstep.processes.rdbm import GOUB, RDBM
from fewstep.processes.rddm import RDDM, Residual
from fewstep.processes.resfusion import Resfusion
from fewstep.processes.resshift import ResShift
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from fewstep.sampling.sample import sample
from fewstep.training.fit import fit, rows_of

F64 = torch.float64
GAUSSIAN = [
    DDBM(),
    DDBM(EDM(sigma_max=4.0)),
    GOUB(theta=1.5, spread=0.7),
    ResShift(kappa=1.5),
    MeanReverting(spread=0.8),
    OUVE(gamma=4.0, sigma_max=1.0),  # little of the residual is left at the end: the law of the start is nearly right
    RDDM(),
    Residual(VP()),
    Resfusion(),
]
each = pytest.mark.parametrize("process", GAUSSIAN, ids=lambda p: f"{p.name}-{GAUSSIAN.index(p)}")


def pairs(process, d: int = 2) -> GaussianBridge:
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(2 * d, 2 * d, generator=generator, dtype=F64) / math.sqrt(2 * d)
    mean = 0.5 * torch.randn(2, d, generator=generator, dtype=F64)
    return GaussianBridge(mean, root @ root.mT + 0.05 * torch.eye(2 * d, dtype=F64), process)


@each
def test_the_exact_denoiser_is_the_regression_of_the_data_on_state_and_picture(process):
    """E[x0 | x_t, y] of a normal triple, by solving with the joint covariance of (x_t, y)."""
    model = pairs(process)
    x0, y = model.sample(100_000, seed=1)
    joint = model.root @ model.root.mT
    cxx, cxy, cyy = joint[:2, :2], joint[:2, 2:], joint[2:, 2:]
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=F64)
    for part in (0.15, 0.6, 0.95):
        t = torch.tensor(process.t_min + part * (process.t_max - process.t_min), dtype=F64)
        a, b, c = process.a(t), process.b(t), process.c(t)
        state = a * x0 + b * y + c * eps
        # Marginals of the state: mean and covariance from the definition.
        mean = a * model.mean[0] + b * model.mean[1]
        cov = a**2 * cxx + b**2 * cyy + a * b * (cxy + cxy.mT) + c**2 * torch.eye(2, dtype=F64)
        torch.testing.assert_close(state.mean(0), mean, rtol=0, atol=0.02)
        torch.testing.assert_close(state.T.cov(), cov, rtol=0.02, atol=0.02)
        with_state = torch.cat([torch.cat([cov, a * cxy + b * cyy], 1), torch.cat([a * cxy.mT + b * cyy, cyy], 1)])
        cross = torch.cat([a * cxx + b * cxy, cxy], 1)
        few, pic = state[:64], y[:64]
        centred = torch.cat([few - mean, pic - model.mean[1]], 1)
        wanted = model.mean[0] + centred @ torch.linalg.solve(with_state, cross.mT)
        u = process.coordinates(few, pic, t)
        prediction = model(u, t, y=pic)
        torch.testing.assert_close(model.decode(prediction.x0, y=pic), wanted, rtol=1e-7, atol=1e-7)
        # The score of q(x_t | y), which is that of u divided by the scale.
        m, v = model.posterior(pic)
        spread = a**2 * v + c**2 * torch.eye(2, dtype=F64)
        score = -torch.linalg.solve(spread, (few - a * m - b * pic).mT).mT
        torch.testing.assert_close(prediction.score / process.scale(t), score, rtol=1e-6, atol=1e-6)


class Units:
    """Noise whose rows are the unit vectors of all draws: 0 is the start's, the last row has none at all."""

    def __init__(self, draws: int, d: int):
        self.rows = torch.eye((draws + 1) * d, dtype=F64).reshape(-1, draws + 1, d)
        self.rows = torch.cat([self.rows, torch.zeros(1, draws + 1, d, dtype=F64)])

    def normal(self, draw: int, shape, device="cpu", dtype=F64) -> Tensor:
        return self.rows[:, draw]


def law(model: GaussianBridge, solver: str, steps: int, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a run's samples, exactly: a run on a linear denoiser is affine in all its noise."""
    made = plan(model.process, solver, steps, "log-snr")
    units = Units(sum(len(stage.draws) for stage in made.table.stages), 2)
    named = y.expand(len(units.rows), 2)
    x = model.decode(made(model, units.normal(0, ()), dtype=F64, source=units, y=named), y=named)
    spread = x[:-1] - x[-1]
    return x[-1], spread.mT @ spread


# Steps, and how near the covariance is then.
NEAR = {
    "ddim": (40, 0.45),
    "dpmpp-2m": (30, 0.1),
    "unipc": (30, 0.1),
    "ddpm": (40, 0.45),
    "bridge-hybrid": (30, 0.45),
    "shift-ancestral": (40, 0.45),
}


@sampled("number, solver", range(len(GAUSSIAN)), list(NEAR))
def test_the_endpoint_has_the_law_of_the_data_given_the_picture(number, solver):
    process, (steps, close) = GAUSSIAN[number], NEAR[solver]
    """Its mean and covariance, and twice as many steps come closer."""
    model, y = pairs(process), torch.tensor([0.8, -0.5], dtype=F64)
    mean, covariance = (value.squeeze(0) for value in model.posterior(y[None]))
    left = 2.0 * process.alpha(process.t_max)  # what the start leaves out of the data
    errors = []
    for n in (steps, 2 * steps):
        got, spread = law(model, solver, n, y)
        torch.testing.assert_close(got, mean, rtol=0, atol=2e-3 + left)
        errors.append(float((spread - covariance).norm() / covariance.norm()))
    assert errors[0] < close + left and errors[1] < 0.6 * errors[0] + left


@functools.cache
def ended(process, solver: str, steps: int) -> Tensor:
    """Where a solver ends on even steps in log-SNR, from sigma / alpha = 3 to 0.1."""
    model = pairs(process)
    y, noise = model.sample(16, seed=4)[1], Noise(0).normal(0, (16, 2), "cpu", F64)
    grid = [process.time(-math.log(3) + i / steps * math.log(30)) for i in range(steps + 1)]
    return plan(process, solver, timesteps=grid)(model, noise, dtype=F64, y=y)


ORDERS = {"ddim": 1, "dpmpp-2m": 2, "dpmpp-3m": 3, "unipc-2": 3}


@sampled("solver, process", list(ORDERS), [DDBM(), MeanReverting(spread=0.8), Resfusion()])
def test_solvers_keep_their_order(process, solver):
    coarse, fine = ((ended(process, solver, n) - ended(process, "ab-5", 300)).norm() for n in (48, 96))
    assert math.log2(coarse / fine) == pytest.approx(ORDERS[solver], abs=0.2)


def test_the_posterior_is_exact_by_regression_on_samples():
    model = pairs(DDBM())
    x0, y = model.sample(100_000, seed=1)
    design = torch.cat([torch.ones(len(y), 1, dtype=F64), y], 1)
    fitted = torch.linalg.lstsq(design, x0).solution
    mean, covariance = model.posterior(y[:5])
    torch.testing.assert_close(design[:5] @ fitted, mean, rtol=0, atol=0.01)
    torch.testing.assert_close((x0 - design @ fitted).T.cov(), covariance, rtol=0, atol=0.01)


class Oracle(nn.Module):
    """Knows the answer in whatever form the denoiser asks for; checks what it is shown."""

    def __init__(self, process, predicts: str, x0: Tensor, eps: Tensor):
        super().__init__()
        self.process, self.predicts, self.x0, self.eps = process, predicts, x0, eps

    @property
    def dtype(self) -> torch.dtype:
        return F64

    def forward(self, x: Tensor, noise: Tensor, y: Tensor) -> Tensor:
        self.seen = x
        t = noise[:, None]
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        u0, residual = self.x0 - self.process.centre * y, y - self.x0
        return {
            "x0": self.x0,
            "residual": residual,
            "residual+eps": torch.cat([residual, self.eps], 1),
            "resnoise": self.eps + 0.5 * sigma * residual,
            "eps": self.eps,
            "v": alpha * self.eps - sigma * u0,
            "flow": self.eps - u0,
        }[self.predicts]


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("process", [DDBM(), RDDM(), Resfusion(), MeanReverting(), RDBM()], ids=lambda p: p.name)
def test_an_oracle_of_every_kind_gives_data_noise_and_loss_zero(process, predicts, monkeypatch):
    x0, y, eps = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    used = eps * (x0 - y) if process.modulated else eps
    network = Oracle(process, predicts, x0, used)
    monkeypatch.setattr(BridgeDenoiser, "dtype", property(lambda self: F64))
    model = BridgeDenoiser(network, process, predicts, shape=(4,))
    t = process.t_min + torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=F64) * (process.t_max - process.t_min)
    output, target = model.loss_pair(x0, eps, t, y=y)
    torch.testing.assert_close(output, target, rtol=1e-9, atol=1e-9)
    state = process.a(t)[:, None] * x0 + process.b(t)[:, None] * y + process.c(t)[:, None] * used
    torch.testing.assert_close(network.seen, state, rtol=1e-9, atol=1e-9)
    u = process.alpha(t)[:, None] * model.encode(x0, y=y) + process.sigma(t)[:, None] * used
    prediction = model(u, t, y=y)
    keep = slice(0, 4) if predicts == "eps" else slice(None)  # eps alone says nothing about the data at pure noise
    torch.testing.assert_close(model.decode(prediction.x0, y=y)[keep], x0[keep], rtol=1e-7, atol=1e-6)
    torch.testing.assert_close(prediction.eps, used, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "process",
    [DDBM(), DDBM(EDM(sigma_max=4.0)), ResShift()],
    ids=lambda p: f"{p.name}-{p.k if hasattr(p, 'k') else 0:.1f}",
)
def test_the_preconditioning_has_unit_variance_in_and_out(process):
    """Over correlated pairs: input and target of the network have unit variance, and the target is uncorrelated
    with the state, so that zero is its best constant multiple of the state."""
    generator = torch.Generator().manual_seed(0)
    first, second, eps = torch.randn(3, 50_000, 1, generator=generator, dtype=F64)
    y = 0.9 * first
    x0 = 0.5 * (0.7 * first + math.sqrt(1 - 0.49) * second)
    found = statistics(x0, y)
    assert found == pytest.approx({"data_std": 0.5, "picture_std": 0.9, "correlation": 0.7}, rel=0.02)
    seen = []
    network = MLP((1,), width=4, depth=1, picture=1).double()
    network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model = BridgeDenoiser(network, process, precondition="bridge", shape=(1,), **found)
    for part in (0.02, 0.3, 0.8, 0.99):
        t = torch.full((len(y),), process.t_min + part * (process.t_max - process.t_min), dtype=F64)
        _, target = model.loss_pair(x0, eps, t, y=y)
        assert float(seen[-1].var()) == pytest.approx(1, rel=0.04)
        assert float(target.var()) == pytest.approx(1, rel=0.04)
        assert float((target * seen[-1]).mean()) == pytest.approx(0, abs=0.04)
        # The loss and the forward pass speak of the same answer.
        few = slice(0, 7)
        u = process.alpha(t)[few, None] * model.encode(x0, y=y)[few] + process.sigma(t)[few, None] * eps[few]
        output, target = model.loss_pair(x0[few], eps[few], t[few], y=y[few])
        got = model.decode(model(u, t[few], y=y[few]).x0, y=y[few]) - x0[few]
        c_out = model._bridge(t[few])[2][:, None]
        torch.testing.assert_close(got, c_out * (output - target), rtol=1e-6, atol=1e-9)
        weight = model.own_error(t[few])[:, None]
        u0_error = got * process.alpha(t)[few, None] / process.sigma(t)[few, None]
        torch.testing.assert_close(u0_error**2, weight * (output - target) ** 2, rtol=1e-5, atol=1e-12)


def test_the_preconditioning_is_edms_where_the_picture_has_no_part():
    """A residual bridge of the variance-exploding process at y = 0 and no correlation: c_skip, c_in, c_out are EDM's
    in the state x0 + sigma eps, because b = 0 there."""
    model = BridgeDenoiser(MLP((2,), picture=2), Residual(EDM()), precondition="bridge", shape=(2,), data_std=0.6)
    plain = NetworkDenoiser(MLP((2,)), EDM(), "x0", precondition="edm", data_std=0.6)
    t = torch.tensor([0.01, 0.5, 30.0], dtype=F64)
    c_in, c_skip, c_out, c_noise, _, _ = model._bridge(t)
    other = [value.flatten().double() for value in plain._edm(torch.zeros(3, 1, dtype=F64), t)]
    for ours, theirs in zip((c_in, c_noise, c_skip, c_out), other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_a_run_starts_at_a_noise_level_that_training_has_met():
    """At an end without data log-SNR is infinite; the network is told a level that it met before."""
    model = BridgeDenoiser(MLP((2,), picture=2), DDBM(), precondition="bridge", shape=(2,))
    t = torch.linspace(0, 1, 1001, dtype=F64)
    told = model._bridge(t)[3]
    assert float(told[-1]) == float(told[-5]) and bool((told.diff() >= 0).all())


@pytest.mark.slow
def test_a_trained_bridge_comes_near_the_exact_one():
    process = DDBM()
    exact = pairs(process)
    x0, y = (value.float() for value in exact.sample(4096, seed=0))
    torch.manual_seed(0)
    model = BridgeDenoiser(
        MLP((2,), width=32, depth=2, picture=2), process, precondition="bridge", shape=(2,), **statistics(x0, y)
    )
    model = fit(model, rows_of(x0, y=y), steps=300, batch=128, lr=5e-3, seed=0)
    x0, y = (value.float() for value in exact.sample(2000, seed=1))
    t = torch.rand(2000, generator=torch.Generator().manual_seed(2), dtype=F64) * 0.9 + 0.05
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))
    u = (process.alpha(t)[:, None] * x0 + process.sigma(t)[:, None] * eps).float()
    with torch.no_grad():
        error = (model(u, t, y=y).x0 - exact(u, t, y=y).x0).square().mean()
        unexplained = (exact.posterior(y)[0] - exact(u, t, y=y).x0).square().mean()
    assert float(error) < 0.05 * float(unexplained)


def test_untouched_pixels_stay_under_the_residual_bridge():
    """With x0 = y in half the pixels, the modulated noise leaves them alone, and so does every deterministic solver."""
    process = RDBM()
    x0, y = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    x0[:, :4] = y[:, :4]
    model = BridgeDenoiser(MLP((8,), picture=8).double(), process, "x0", shape=(8,))
    t = torch.full((6,), 0.5, dtype=F64)
    seen = []
    model.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.loss_pair(x0, torch.ones_like(x0), t, y=y)
    torch.testing.assert_close(seen[0][:, :4], y[:, :4], rtol=1e-14, atol=1e-14)
    assert float((seen[0] - y)[:, 4:].abs().min()) > 0
    constant = BridgeDenoiser(Oracle(process, "x0", x0, x0), process, "x0", shape=(8,))
    for solver in ("ddim", "dpmpp-2m", "unipc"):
        out = sample(constant, 6, steps=5, solver=solver, dtype=F64, y=y)
        torch.testing.assert_close(out, x0, rtol=0, atol=1e-5)


def test_rdbms_deterministic_step_is_ddims_around_the_picture():
    """x_s - y = c_s / c_t (x_t - y) + (a_s - a_t c_s / c_t)(x0 - y), the paper's step."""
    process = RDBM()
    x0, y = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    times = [0.9, 0.6, 0.3, 0.1]
    model = BridgeDenoiser(Oracle(process, "x0", x0, x0), process, "x0", shape=(3,))
    start = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    ours = plan(process, "ddim", timesteps=times)(model, start, dtype=F64, y=y)
    x = process.state(start * process.sigma(0.9), y, torch.tensor(0.9, dtype=F64))
    for t, s in zip(times, times[1:], strict=False):
        ratio = process.c(s) / process.c(t)
        x = y + ratio * (x - y) + (process.a(s) - process.a(t) * ratio) * (x0 - y)
    torch.testing.assert_close(process.state(ours, y, torch.tensor(0.1, dtype=F64)), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("process", [DDBM(), DDBM(EDM()), ResShift(), Resfusion()], ids=lambda p: f"{p.name}-{p.t_min}")
def test_a_folder_gives_the_same_model_back(process, tmp_path):
    torch.manual_seed(0)
    precondition = "bridge" if process.name == "ddbm" else "none"
    predicts = "resnoise" if process.name == "resfusion" else "x0"
    network = UNet(1, 8, (8,), attention=(), classes=3, picture=1)
    nn.init.normal_(network.last.weight)
    model = BridgeDenoiser(
        network,
        process,
        predicts,
        shape=(1, 8, 8),
        conditions={"label": Label(3)},
        precondition=precondition,
        data_std=0.4,
        picture_std=0.7,
        correlation=0.3,
    ).eval()
    again = load_model(save_model(model, tmp_path / "model"))
    assert isinstance(again, BridgeDenoiser) and again.process == process
    assert (again.picture_std, again.correlation, again.data_std) == (0.7, 0.3, 0.4)
    assert again.conditions == model.conditions
    y = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    first, second = (sample(m, 2, steps=3, y=y, label=1) for m in (model, again))
    assert torch.equal(first, second)


def test_bad_input():
    network = MLP((2,), picture=2)
    model = BridgeDenoiser(network, DDBM(), shape=(2,))
    x, t = torch.zeros(3, 2), torch.tensor(0.5)
    for call, message in (
        (lambda: BridgeDenoiser(network, VP(), shape=(2,)), "needs a bridge process, such as DDBM.*, got 'vp'"),
        (lambda: BridgeDenoiser(network, DDBM()), "needs the shape of a sample"),
        (lambda: BridgeDenoiser(network, DDBM(), "resnoize", shape=(2,)), "did you mean 'resnoise'"),
        (lambda: BridgeDenoiser(network, DDBM(), shape=(2,), precondition="edm"), "unknown precondition 'edm'"),
        (lambda: BridgeDenoiser(network, DDBM(), "eps", shape=(2,), precondition="bridge"), "predicts 'x0', not 'eps'"),
        (lambda: BridgeDenoiser(network, DDBM(), shape=(2,), correlation=1.0), "between -1 and 1, got"),
        (lambda: model(x, t), "runs between pairs: give y"),
        (lambda: model(x, t, y=torch.zeros(3, 4)), r"samples' shape \(3, 2\), got \(3, 4\)"),
        (lambda: model.loss_pair(x, x, t.expand(3)), "runs between pairs"),
        (lambda: fit(model, x, steps=1), "runs between pairs"),
        (lambda: sample(model, 3, steps=2), "this model needs y"),
        (lambda: sample(model, 3, steps=2, y=torch.zeros(3, 4)), "y must have shape"),
        (lambda: statistics(torch.zeros(3, 2), torch.zeros(4, 2)), "must come in pairs"),
        (lambda: GaussianBridge(torch.zeros(2, 3), torch.eye(6), VP()), "needs a bridge process"),
        (lambda: GaussianBridge(torch.zeros(2, 3), torch.eye(6), RDBM()), "not Gaussian"),
        (lambda: GaussianBridge(torch.zeros(2, 3), torch.eye(5), DDBM()), r"covariance \(6, 6\)"),
        (lambda: GaussianBridge(torch.zeros(2, 3), -torch.eye(6), DDBM()), "positive definite"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
