"""The contract of every solver of `sampling/`: registered solvers enter by themselves."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from sampled import sampled
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.core.methods import card, methods, order
from fewstep.core.noise import Noise
from fewstep.core.plan import Plan
from fewstep.core.program import program
from fewstep.core.run import _loop
from fewstep.core.unrolled import unrolled
from fewstep.processes.cosine import Cosine
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM, VE
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan, solver_names

SOLVERS = solver_names()
DETERMINISTIC = [name for name in SOLVERS if not card(name, "solver")[0].facts.get("stochastic")]
STOCHASTIC = [name for name in SOLVERS if name not in DETERMINISTIC]
RULES = [method.name for method in methods("rule")]
F64 = torch.float64


def stated(name: str) -> int:
    return order(*card(name, "solver"))


def log_snr_grid(process, n: int, uneven: bool, low: float = -math.log(3), high: float = -math.log(0.1)) -> list[float]:
    u = np.linspace(0, 1, n + 1)
    if uneven:  # every second step half as long again
        u = np.append(0, np.cumsum(np.where(np.arange(n) % 2 == 0, 1.2, 0.8)))
        u /= u[-1]
    return [process.time(float(v)) for v in low + u * (high - low)]


@pytest.fixture(scope="module")
def problem(smooth):
    noise = torch.randn(32, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    grid = log_snr_grid(smooth.process, 800, uneven=False)
    exact = plan(smooth.process, "ab-5", timesteps=grid)(smooth, noise, dtype=F64)
    other = plan(smooth.process, "unipc-4", timesteps=grid)(smooth, noise, dtype=F64)
    assert float((exact - other).abs().max()) < 1e-10
    return noise, exact


def error(name: str, model, problem, n: int, uneven: bool) -> float:
    noise, exact = problem
    x = plan(model.process, name, timesteps=log_snr_grid(model.process, n, uneven))(model, noise, dtype=F64)
    return float((x - exact).norm() / exact.norm())


@sampled("name, grid", DETERMINISTIC, ["even", "uneven"])
def test_error_falls_at_the_stated_order(name, grid, smooth, problem):
    coarse, fine = (error(name, smooth, problem, n, grid == "uneven") for n in (96, 192))
    assert math.log2(coarse / fine) == pytest.approx(stated(name), abs=0.2)


@pytest.fixture(scope="module")
def drifted(smooth):
    """Noise, and where the drift of the reverse SDE (eta = 1) takes it: d(x/alpha)/d(log_snr) = 2 (x0 - x/alpha)."""
    process = smooth.process
    noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(2), dtype=F64)

    def drift(log_snr: float, y: torch.Tensor) -> torch.Tensor:
        t = torch.tensor(process.time(log_snr), dtype=F64)
        return 2 * (smooth(y * process.alpha(t), t).x0 - y)

    low, high, n = -math.log(3), -math.log(0.1), 400
    y = noise * (process.sigma(process.time(low)) / process.alpha(process.time(low)))
    h = (high - low) / n
    for i in range(n):  # classical Runge-Kutta
        v = low + i * h
        k1 = drift(v, y)
        k2 = drift(v + h / 2, y + h / 2 * k1)
        k3 = drift(v + h / 2, y + h / 2 * k2)
        k4 = drift(v + h, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return noise, y


@pytest.mark.parametrize("name", STOCHASTIC)
def test_without_noise_the_drift_is_followed_at_its_order(name, smooth, drifted, silent):
    order = card(name, "solver")[0].facts.get("drift_order", 1)
    process, (noise, y), errors = smooth.process, drifted, []
    for steps in (64, 128):
        grid = log_snr_grid(process, steps, uneven=True)
        x = plan(process, name, timesteps=grid)(smooth, noise, source=silent, dtype=F64) / process.alpha(grid[-1])
        errors.append(float((x - y).norm() / y.norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


@sampled(
    "name, process, end, share", SOLVERS, [Flow(), Discrete.linear()], ["zero", "min"], ["even rules", "odd rules"]
)
def test_finite_with_the_stated_evaluations_at_1_to_30_steps_of_every_rule(name, process, end, share, make_mixture):
    """Flow starts at alpha = 0, "zero" ends at sigma = 0: both together with every rule and step count."""
    steps = (2, 3, 4, 5, 7, 30)
    model = make_mixture(process, (3,))
    noise = Noise(5).normal(0, (2, 3), "cpu", F64)
    for i in range(share == "odd rules", len(RULES), 2):
        shift = i if process.name == "flow" else i + 3
        for n in (1, steps[shift % len(steps)]):  # one of the counts with each rule, one step with all
            made = plan(process, name, n, RULES[i], end=end)
            result = made.run(model, noise, dtype=F64)
            assert result.nfe == made.nfe == len(made.evaluations)
            assert bool(torch.isfinite(result.samples).all()), (RULES[i], n)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_every_count_rule_and_end(name, make_mixture):
    """Flow starts at alpha = 0; the table ends there too, with its clean time off the clock."""
    table = Discrete.from_betas([1e-4 + 2e-5 * i for i in range(999)], zero_terminal=True)
    for process in (Flow(), table):
        model = make_mixture(process, (3,))
        noise = Noise(5).normal(0, (2, 3), "cpu", F64)
        for rule in RULES:
            for end in ("zero", "min"):
                for n in range(1, 31):
                    result = plan(process, name, n, rule, end=end).run(model, noise, dtype=F64)
                    assert result.nfe == result.planned_nfe
                    assert bool(torch.isfinite(result.samples).all())


@pytest.fixture(scope="module")
def ended(make_mixture):
    """The mixture on a process, noise, and its exact end."""

    @cache
    def solved(process):
        model, noise = make_mixture(process), Noise(5).normal(0, (16, 2), "cpu", F64)
        return model, noise, plan(process, "vab-4", 300, "karras")(model, noise, dtype=F64)

    return solved


@sampled("name, process", DETERMINISTIC, [VP(), Cosine(t_max=1.0), VE(), EDM(), Flow()])
def test_fifty_steps_land_near_the_exact_end_on_every_process(name, process, ended):
    model, noise, exact = ended(process)
    x = plan(process, name, 50, "karras")(model, noise, dtype=F64)
    limit = {1: 0.3, 2: 0.03}.get(stated(name), 0.02)
    assert float((x - exact).norm() / exact.norm()) < limit


@pytest.mark.parametrize("name", SOLVERS)
def test_a_batch_equals_its_single_runs(name, make_mixture):
    process = EDM()
    model = make_mixture(process, (2, 3))
    noise = Noise(7).normal(0, (5, 2, 3))
    made = plan(process, name, 6, "karras")
    together = made(model, noise, seed=7)
    alone = torch.cat([made(model, noise[i : i + 1], seed=7, first=i) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_noise_is_the_seeds(name, make_mixture):
    process = VP()
    model = make_mixture(process, (2, 3))
    noise = Noise(7).normal(0, (5, 2, 3))
    made = plan(process, name, 6)
    assert torch.equal(made(model, noise, seed=7), made(model, noise, seed=7))
    assert not torch.allclose(made(model, noise, seed=7), made(model, noise, seed=8))


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.add(op.overloadpacket.__name__)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SOLVERS)
def test_the_loop_reads_nothing_from_the_device(name, make_mixture):
    process = VP()
    model = make_mixture(process, (2, 3))
    noise = Noise(7).normal(0, (5, 2, 3))
    made = plan(process, name, 6)
    with Seen() as seen, torch.no_grad():
        _loop(made.table, model, program(made.table, noise, Noise(7)), noise.shape, {}, None, None)
    assert "mm" in seen.names
    assert not seen.names & {"_local_scalar_dense", "nonzero", "_linalg_check_errors", "equal", "is_nonzero"}


@pytest.mark.parametrize("name", SOLVERS)
def test_the_unrolled_program_gives_the_same_samples_and_gradients(name, make_mixture):
    process = VP()
    model = make_mixture(process, (2, 3))
    noise = Noise(7).normal(0, (5, 2, 3), "cpu", F64)
    made = plan(process, name, 5)
    table = made.table
    times, weights, conversions = table.numbers("x0", noise.device, F64)
    draws = sum(len(stage.draws) for stage in table.stages)
    noises = [Noise(7).normal(k + 1, (5, 2, 3), "cpu", F64) for k in range(draws)]
    start = (noise * made.start[1]).requires_grad_(True)
    out = unrolled(table.structure, model, start, times, weights, conversions, noises, {})
    torch.testing.assert_close(out, made(model, noise, seed=7, dtype=F64), rtol=1e-9, atol=1e-10)
    (gradient,) = torch.autograd.grad(out.sum(), start)
    assert bool(torch.isfinite(gradient).all())


class Cheap(torch.nn.Module):
    """A denoiser that compiles in a moment."""

    def __init__(self, process):
        super().__init__()
        self.process = process

    def forward(self, x, t):
        from fewstep.core.prediction import Prediction

        return Prediction(torch.tanh(x) * torch.cos(t), "x0", x, t, self.process)


# Tracing takes its time, and the orders of a family are traced alike: the last of each third family by default.
LAST = list({card(name, "solver")[0].name: name for name in SOLVERS}.values())[::3]


@pytest.mark.parametrize(
    "name, steps",
    [
        pytest.param(name, steps, marks=[] if steps == 4 and name in LAST else pytest.mark.slow)
        for name in SOLVERS
        for steps in (2, 4)
    ],
)
def test_one_graph_for_all_schedules_of_a_solver(name, steps):
    import torch._dynamo
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(unrolled, backend=counter, fullgraph=True)
    process = EDM()
    model = Cheap(process)
    noise = Noise(7).normal(0, (2, 3))
    for rule in ("karras", "log-snr"):
        made: Plan = plan(process, name, steps, rule)
        table = made.table
        times, weights, conversions = table.numbers("x0", noise.device, torch.float32)
        noises = [Noise(7).normal(k + 1, (2, 3)) for k in range(sum(len(stage.draws) for stage in table.stages))]
        x = compiled(table.structure, model, noise * made.start[1], times, weights, conversions, noises, {})
        torch.testing.assert_close(
            x, unrolled(table.structure, model, noise * made.start[1], times, weights, conversions, noises, {})
        )
    assert counter.frame_count == 1


@pytest.fixture(scope="module")
def carried(smooth):
    """From noise, or from the clean samples noised: the exact flow along the times of a plan."""
    noise, clean = Noise(3).normal(0, (512, 2), "cpu", F64), smooth.sample(512, seed=4)

    @cache
    def exact(times: tuple[float, ...], middle: bool):
        fine = plan(smooth.process, "ab-4", timesteps=_refined(times, smooth.process))
        return fine(smooth, noise, init=clean if middle else None, dtype=F64)

    return noise, clean, exact


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_start_in_the_middle_is_as_accurate_as_a_full_run(name, smooth, carried):
    """Both are measured against the exact flow from their own start, with steps of the same length."""
    process, (noise, clean, carry) = smooth.process, carried

    def relative(strength: float, init) -> float:
        made = plan(process, name, round(40 * strength), strength=strength, end="min")
        x, exact = made(smooth, noise, init=init, dtype=F64), carry(tuple(made.times), init is not None)
        return float((x - exact).norm() / exact.norm())

    later = plan(process, name, 40, end="min").times[20:]
    assert plan(process, name, 20, strength=0.5, end="min").times == pytest.approx(later)
    # Over all solvers 0.3 to 3.0 times: the first steps are of lower order, and begin where the answers change faster.
    assert relative(0.5, clean) <= 3.2 * relative(1.0, None)


def _refined(times, process, parts: int = 8) -> list[float]:
    fine = []
    for a, b in zip(times, times[1:], strict=False):
        low, high = process.log_snr(a), process.log_snr(b)
        fine += [a] + [process.time(low + (high - low) * k / parts) for k in range(1, parts)]
    return [*fine, times[-1]]
