"""Plans: traced, immutable, printed, saved; and what a traced program computes against plain tensor code."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from fewstep.core.noise import Noise
from fewstep.core.ops import Combine, Draw, Evaluate
from fewstep.core.plan import Plan
from fewstep.core.record import record
from fewstep.core.trace import Trace, Value
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.shifted import Shifted
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

F64 = torch.float64
GRID = [1.0, 0.83, 0.6, 0.41, 0.2, 0.05]
NOISE = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=F64)


def x0_of(model, x, t):
    return model(x, torch.tensor(t, dtype=F64)).x0


def ddim(model, x, times, process):
    for t, s in pairwise(times):
        x0 = x0_of(model, x, t)
        eps = (x - process.alpha(t) * x0) / process.sigma(t)
        x = process.alpha(s) * x0 + process.sigma(s) * eps
    return x


def dpmpp_2m(model, x, times, process):
    """Lu et al. (2022), Algorithm 2."""
    last = None
    for t, s in pairwise(times):
        x0 = x0_of(model, x, t)
        h = process.log_snr(s) - process.log_snr(t)
        guess = x0
        if last is not None:
            r = last[1] / h
            guess = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * last[0]
        x = process.sigma(s) / process.sigma(t) * x - process.alpha(s) * (math.exp(-h) - 1) * guess
        last = (x0, h)
    return x


def heun(model, x, times, process):
    """Karras et al. (2022), Algorithm 1, with dx/dt = alpha' x0 + sigma' eps."""

    def slope(x, t):
        x0 = x0_of(model, x, t)
        return process.dalpha(t) * x0 + process.dsigma(t) * (x - process.alpha(t) * x0) / process.sigma(t)

    for t, s in pairwise(times):
        d = slope(x, t)
        x = x + (s - t) / 2 * (d + slope(x + (s - t) * d, s))
    return x


@pytest.mark.parametrize("process,times", [(VP(), GRID), (EDM(), [80.0, 20.0, 5.0, 1.0, 0.2])], ids=["vp", "edm"])
@pytest.mark.parametrize("name,formula", [("ddim", ddim), ("dpmpp-2m", dpmpp_2m), ("heun", heun)])
def test_a_plan_is_the_formula_written_out(name, formula, process, times, make_mixture):
    model = make_mixture(process, (2, 5))
    x = plan(process, name, timesteps=times)(model, NOISE, dtype=F64)
    torch.testing.assert_close(
        x, formula(model, NOISE * process.sigma(times[0]), times, process), rtol=1e-12, atol=1e-12
    )


def test_a_step_to_sigma_zero_is_the_predicted_x0(make_mixture):
    process = EDM()
    model = make_mixture(process, (2, 5))
    for name in ("ddim", "dpmpp-2m", "heun", "euler"):
        short = plan(process, name, timesteps=[80.0, 3.0])(model, NOISE, dtype=F64)
        whole = plan(process, name, timesteps=[80.0, 3.0, 0.0])(model, NOISE, dtype=F64)
        torch.testing.assert_close(whole, x0_of(model, short, 3.0))


def test_immutable():
    made = plan(VP(), "dpmpp-2m", 4)
    for field in dataclasses.fields(made):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, field.name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.ops[0].t = 3.0
    assert isinstance(made.ops, tuple) and isinstance(made.times, tuple)


def test_nfe_times_and_about():
    made = plan(VP(), "heun", timesteps=GRID)
    assert made.times == tuple(GRID) and made.nfe == 2 * (len(GRID) - 1)
    assert made.start == (VP().alpha(1.0), VP().sigma(1.0))
    assert (made.name, made.stochastic) == ("heun", False)
    assert plan(VP(), "ddpm", 3).stochastic
    assert [e.t for e in plan(VP(), "ddim", timesteps=GRID).evaluations] == GRID[:-1]
    for e in made.evaluations:
        assert e.scales == tuple(getattr(VP(), f)(e.t) for f in ("alpha", "sigma", "dalpha", "dsigma"))


def test_print_is_a_table():
    text = str(plan(Flow(), "ddim", 3, "uniform"))
    head, *rows = text.splitlines()
    assert head == "Plan: 3 evaluations, flow process, solver ddim, timesteps uniform, steps 3, end zero"
    assert "model(x, t=1)  alpha 0  sigma 1  log-SNR -inf" in rows[0]
    assert rows[-1].split() == ["result", "=", "+1", "x03"]
    assert "z1" in str(plan(VP(), "ddpm", 3))


@pytest.mark.parametrize(
    "process",
    [VP(), EDM(), Flow(), Discrete.linear(steps=30), Shifted(Discrete.linear(steps=30), 2.0)],
    ids=lambda p: p.name,
)
@pytest.mark.parametrize("name", ["unipc-3", "dpmpp-2s-sde", "heun"])
def test_save_and_load_are_exact(process, name, tmp_path, make_mixture):
    made = plan(process, name, 6)
    made.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == made and str(loaded) == str(made)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    model = make_mixture(process, (2, 5))
    assert torch.equal(loaded(model, NOISE, seed=3), made(model, NOISE, seed=3))


def test_a_loaded_plan_runs_without_its_solver(tmp_path, make_mixture):
    process = VP()
    made = plan(process, "unipc-3", 5)
    made.save(tmp_path / "plan.json")
    code = f"""
import sys, torch
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("fewstep.sampling", "fewstep.timesteps")):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
from fewstep.core.plan import Plan
from fewstep.core.process import process_from_config
from fewstep.denoisers.gaussian_mixture import GaussianMixture
made = Plan.load({str(tmp_path / "plan.json")!r})
model = GaussianMixture(torch.ones(1), torch.full((1, 3), 0.5), 0.2, process_from_config(made.process))
print(made(model, torch.ones(2, 3, dtype=torch.float64), dtype=torch.float64).sum().item())
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    from fewstep.denoisers.gaussian_mixture import GaussianMixture

    model = GaussianMixture(torch.ones(1), torch.full((1, 3), 0.5), 0.2, process)
    assert float(out) == float(made(model, torch.ones(2, 3, dtype=F64), dtype=F64).sum())


def damaged(change) -> str:
    data = json.loads(plan(VP(), "dpmpp-2m", 3).to_json())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "text,message",
    [
        ("not json", "Expecting value"),
        ('{"format": "other"}', "format 'other', expected 'fewstep-plan-1'"),
        ("[1, 2]", "not a fewstep plan"),
        (plan(VP(), "ddim", 3).to_json()[:-20], "not a fewstep plan"),
        (damaged(lambda d: d.pop("ops")), "'ops'"),
        (damaged(lambda d: d["ops"].pop(0)), "is used before it is made"),
        (damaged(lambda d: d.update(result=99)), "the result, slot 99, is never made"),
        (damaged(lambda d: d.update(result=d["ops"][0][3][0][1])), "the result, slot 1, is no state"),
        (damaged(lambda d: d["ops"][2].__setitem__(1, 1)), "slot 1 is evaluated, but it is no state"),
        (damaged(lambda d: d["ops"][1].__setitem__(1, 0)), "slot 0 is made twice"),
        (damaged(lambda d: d["ops"][0].__setitem__(0, "jump")), "unknown operation 'jump'"),
        (damaged(lambda d: d["ops"][0][3][0].__setitem__(0, "epsilon")), "unknown prediction kind 'epsilon'"),
        (damaged(lambda d: d["ops"][1][2][0].__setitem__(1, math.nan)), "not finite"),
        (damaged(lambda d: d.update(times=None)), "not a fewstep plan"),
    ],
)
def test_damaged_and_foreign_files_are_refused_by_name(text, message, tmp_path):
    path = tmp_path / "strange.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        Plan.load(path)
    assert str(caught.value).startswith(f"{path}: not a fewstep plan: ")


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "strange.json"
    path.write_bytes(b"\x80\x04\xff\xfe")
    with pytest.raises(ValueError, match="strange.json"):
        Plan.load(path)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    made = plan(VP(), "ddim", 3)
    made.save(path)
    before = path.read_text()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        plan(VP(), "ddim", 5).save(path)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


# Programs that no solver of the house writes.


def run(solver, process, times, model, noise=NOISE, **options):
    made = record(solver, process, times, {}, {"solver": "mine"})
    return made.run(model, noise, dtype=F64, **options)


def test_a_state_evaluated_twice(make_mixture):
    process = VP()
    model = make_mixture(process, (2, 5))

    def solver(trace, process, times):
        x = trace.start()
        first, second = trace.evaluate(x, times[0]).x0, trace.evaluate(x, times[1]).x0
        return first * 0.25 + second * 0.75 + x * 0.5

    result = run(solver, process, [0.9, 0.4], model)
    x = NOISE * process.sigma(0.9)
    torch.testing.assert_close(result.samples, 0.25 * x0_of(model, x, 0.9) + 0.75 * x0_of(model, x, 0.4) + 0.5 * x)
    assert result.nfe == 2


def test_a_bare_prediction_a_bare_start_and_an_unused_evaluation(make_mixture):
    process = VP()
    model = make_mixture(process, (2, 5))

    def bare(trace, process, times):
        return trace.evaluate(trace.start(), times[0]).x0

    def start(trace, process, times):
        trace.evaluate(trace.start(), times[0])
        return trace.start()

    def unused(trace, process, times):
        x = trace.start()
        trace.evaluate(x * 2.0, times[0])
        kept = trace.evaluate(x, times[1]).eps
        trace.evaluate(x + kept, times[1])
        return kept

    x = NOISE * process.sigma(0.9)
    torch.testing.assert_close(run(bare, process, [0.9, 0.4], model).samples, x0_of(model, x, 0.9))
    torch.testing.assert_close(run(start, process, [0.9, 0.4], model).samples, x)
    result = run(unused, process, [0.9, 0.4], model)
    assert result.nfe == 3
    torch.testing.assert_close(result.samples, model(x, torch.tensor(0.4, dtype=F64)).eps)


def test_noise_before_the_first_evaluation_and_at_the_end(make_mixture):
    process = VP()
    model = make_mixture(process, (2, 5))

    def solver(trace, process, times):
        x = trace.start() * 0.6 + trace.noise() * 0.8
        x0 = trace.evaluate(x, times[0]).x0
        return x0 + (trace.noise() - trace.noise() * 2.0) * 0.1

    result = run(solver, process, [0.9, 0.4], model, seed=4, first=2)
    z1, z2, z3 = (Noise(4, 2).normal(k, (3, 2, 5), "cpu", F64) for k in (1, 2, 3))
    x = 0.6 * process.sigma(0.9) * NOISE + 0.8 * z1
    torch.testing.assert_close(result.samples, x0_of(model, x, 0.9) + 0.1 * z2 - 0.2 * z3)


def test_churn_is_edms_algorithm_2(make_mixture):
    process, times = EDM(), [10.0, 4.0, 1.0, 0.0]
    model = make_mixture(process, (2, 5))
    made = plan(process, "heun", timesteps=times, churn=0.9, churn_min=0.5, churn_max=5.0, churn_noise=1.1)
    x = NOISE * 10.0
    gamma, draw = 0.3, 0
    for t, s in pairwise(times):
        if 0.5 <= t <= 5.0:
            draw += 1
            raised = t * (1 + gamma)
            x = x + math.sqrt(raised**2 - t**2) * 1.1 * Noise(6).normal(draw, (3, 2, 5), "cpu", F64)
            t = raised
        d = (x - x0_of(model, x, t)) / t
        ahead = x + (s - t) * d
        x = ahead if s == 0 else x + (s - t) / 2 * (d + (ahead - x0_of(model, ahead, s)) / s)
    torch.testing.assert_close(made(model, NOISE, seed=6, dtype=F64), x, rtol=1e-10, atol=1e-12)


def test_eps_at_pure_noise_is_the_state(make_mixture):
    """At alpha = 0 the prediction's weight in eps is 0: x alone says it."""
    process = Flow()
    model = make_mixture(process, (2, 5))

    def solver(trace, process, times):
        prediction = trace.evaluate(trace.start(), times[0])
        return prediction.x0 * process.alpha(times[1]) + prediction.eps * process.sigma(times[1])

    samples = run(solver, process, [1.0, 0.4], model).samples
    torch.testing.assert_close(samples, 0.6 * x0_of(model, NOISE, 1.0) + 0.4 * NOISE, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "name", ["ddim", "dpmpp-2m", "dpmpp-3m", "unipc-3", "ab-4", "deis-3", "heun", "plms", "dpmpp-2m-sde"]
)
def test_the_table_does_not_grow_with_the_steps(name):
    short, long = (plan(VP(), name, n).table for n in (12, 60))
    assert (short.states, short.memory) == (long.states, long.memory)
    assert long.states <= 3 and long.memory <= 6


def test_every_memory_row_is_needed():
    assert (plan(VP(), "ddim", 9).table.states, plan(VP(), "ddim", 9).table.memory) == (1, 1)
    assert plan(VP(), "dpmpp-2m", 9).table.memory == 2


def test_values_are_linear():
    trace = Trace(VP())
    x, z = trace.start(), trace.noise()
    (slot,) = z.terms
    y = 2.0 * x - z / 4.0 + sum([x, z]) * 0.5 - (-x)
    assert y.terms == {0: 3.5, slot: 0.25}
    for wrong in (lambda: x + 1.0, lambda: x - 1.0, lambda: x * z):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(AttributeError):
        _ = trace.evaluate(x, 0.5).epsilon


def test_keep_bounds_an_expression():
    def solver(trace, process, times, kept):
        x = trace.start()
        for t in times:
            x = x * 0.5 + trace.evaluate(trace.start(), t).x0
            if kept:
                trace.keep(x)
        return x

    grid = [1 - i / 20 for i in range(20)]
    kept, free = (record(solver, VP(), grid, {"kept": k}, {}) for k in (True, False))
    assert kept.table.memory == 1 and free.table.memory == 20


def test_operations_are_plain_records():
    made = plan(VP(), "dpmpp-2s-sde", 3)
    assert {type(op) for op in made.ops} == {Evaluate, Combine, Draw}
    assert [op.draw for op in made.ops if isinstance(op, Draw)] == list(
        range(1, 1 + sum(isinstance(op, Draw) for op in made.ops))
    )
    assert isinstance(Trace(VP()).start(), Value)
