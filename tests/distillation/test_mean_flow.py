"""MeanFlow's identity is zero for the exact map under every process; decoupled, a trained network is a map at once."""

from __future__ import annotations

import pytest
import torch
from distillation.mapped import (
    F64,
    PROCESSES,
    SEVEN,
    beside,
    built,
    exact,
    falls,
    learnt,
    network,
    points,
    resumes,
    run,
    steepest,
)

from fewstep.core.student import default_start
from fewstep.distillation.mean_flow import DecoupledMeanFlow
from fewstep.distillation.method import Setting
from fewstep.processes.ve import EDM

each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
both = pytest.mark.parametrize("name", ["mean-flow", "dmf"])


@each
def test_the_identity(process):
    """u - (v - (t - s) du/dt) is 0, to rounding in forward mode and to h^2 by differences (tried: 1e-15, 1.4e-4)."""
    for start in (None, process.t_max if process.name == "flow" else None):
        method, _ = exact(process, "mean-flow", start)
        drawn = method.draw(64, torch.Generator().manual_seed(1))
        x, t, s = method.states_at(drawn, drawn["t"]), drawn["t"], drawn["s"]
        v = method.velocity(x, t, {})
        errors = {}
        for method.mode in ("jvp", "difference"):
            u, goal = method.identity(x, t, s, v, {})
            errors[method.mode] = float((u - goal).abs().max())
        assert errors["jvp"] < 1e-12 and 1e-8 < errors["difference"] < 2e-4


@each
@both
def test_the_exact_map_is_stationary(process, name):
    method, _ = exact(process, name)
    assert steepest(method) < 1e-10
    beside(method)
    assert steepest(method) > 1e-3


@each
def test_pure_noise_and_the_clean_end(process):
    method, law = exact(process, "mean-flow", process.t_max)
    t = torch.full((SEVEN,), process.t_max, dtype=F64)
    x = method.setting.begin(torch.randn(SEVEN, 3, generator=torch.Generator().manual_seed(0), dtype=F64))
    for to in (process.t_zero, process.t_min, process.t_max):
        loss = method.loss(x, t, torch.full_like(t, to), method.velocity(x, t, {}), {})
        assert float(loss.detach().max()) < 1e-15


@each
def test_a_converted_network_is_the_flow_at_its_own_time(process):
    teacher = network(process)
    setting = Setting(teacher, teacher, default_start(process, 0.5))
    method = DecoupledMeanFlow(setting)
    assert method.student.network.embedding.late == 1 and method.setting.student is not None
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.1, 0.6, 5, dtype=F64)
    assert torch.equal(method.student(x, t, to=t).value, teacher(x, t).value)
    assert torch.equal(method.student(x, t).value, teacher(x, t).value)
    assert not torch.equal(method.student(x, t, to=t / 2).value, teacher(x, t).value)
    own = [tuple(p.shape) for p in method.student.parameters()]
    assert own == [tuple(p.shape) for p in teacher.parameters()]  # no new weight
    assert DecoupledMeanFlow(setting, late=2).student.network.embedding.late == 2


def test_velocities_of_data():
    data = points(classes=2)
    method = built("mean-flow", EDM(), 2, data=data, velocity="data", guidance=2.0)
    drawn = method.draw(64, torch.Generator().manual_seed(0))
    assert 0 < int((drawn["condition"]["label"] == 2).sum()) < 20  # a tenth hidden
    x, t = method.states_at(drawn, drawn["t"]), drawn["t"]
    empty = method.student(x, t).to("flow")
    expected = 2 * (drawn["eps"] - drawn["x0"]) - empty
    torch.testing.assert_close(method.velocities(x, t, drawn), expected.detach())


def test_guidance_of_the_teacher():
    method = built("mean-flow", EDM(), 2, guidance=3.0)
    drawn = method.draw(5, torch.Generator().manual_seed(0))
    x, t = method.states_at(drawn, drawn["t"]), drawn["t"]
    teacher, label = method.setting.teacher, drawn["condition"]["label"]
    assert int(label.max()) < 2
    expected = 3 * teacher(x, t, label=label).to("flow") - 2 * teacher(x, t).to("flow")
    torch.testing.assert_close(method.velocities(x, t, drawn), expected.detach())


@pytest.mark.parametrize("options", [{}, {"tangent": "difference"}], ids=str)
@both
@pytest.mark.slow  # the contract has one of each method
def test_resumes(name, options):
    for process, classes in zip(PROCESSES, (None, 3, None), strict=True):
        resumes(name, process, classes, **options)


def test_modes_agree_for_a_network():
    steps = [run(built("mean-flow", EDM(), 3, tangent=mode), 1) for mode in ("jvp", "difference")]
    key = "student.module.network.last.weight"
    torch.testing.assert_close(steps[0][key], steps[1][key], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean-flow", "dmf"])
def test_learns(name):
    before, after, ddim = learnt(name, EDM(), 700)
    falls(before, after, ddim)
