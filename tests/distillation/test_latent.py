"""Latent consistency: pairs on the teacher's table, guidance inside its steps, the exact boundary; it learns."""

from __future__ import annotations

import pytest
import torch
from consistent import F64, distance, drawn, exact, perceptron, plane, points, slopes, small, train

from fewstep.core.methods import made
from fewstep.denoisers.boundary import Boundary
from fewstep.distillation.distances import pseudo_huber
from fewstep.distillation.latent import Latent
from fewstep.distillation.levels import grid
from fewstep.distillation.method import Setting
from fewstep.distillation.pairs import noisy
from fewstep.distillation.teacher import jump, step
from fewstep.guidance.guide import guide
from fewstep.processes.discrete import Discrete
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from tests.distillation.regressions import work_of


def test_pairs_on_a_grid_k_apart_the_last_to_the_clean_end():
    method = Latent(small(EDM()), levels=10, stride=4)
    times = grid(EDM(), 10, method.setting.start)
    assert torch.equal(method.times_of, times)
    batch = drawn(method, 2000)
    rows = torch.searchsorted(-times, -batch["t"])
    assert int(torch.bincount(rows, minlength=10).min()) > 130
    assert torch.equal(batch["s"], times[(rows + 4).clamp(max=10)])


def test_pairs_on_the_teachers_own_table_are_twenty_apart():
    process = Discrete.linear(steps=100)
    base = perceptron(process)
    method = Latent(Setting(plane(process), base, 79.0, data=points()))
    batch = drawn(method, 500)
    assert float(batch["t"].max()) == 79.0
    expected = torch.where(batch["t"] >= 19, batch["t"] - 20, -1.0)
    torch.testing.assert_close(batch["s"], expected, rtol=0, atol=0)


def test_the_loss_by_hand():
    process = VP()
    method = Latent(small(process), stride=5)
    batch = drawn(method)
    alpha, sigma = process.alpha(batch["t"]).float()[:, None], process.sigma(batch["t"]).float()[:, None]
    x = alpha * batch["x0"] + sigma * batch["eps"]
    with torch.no_grad():
        y = jump(process, x, batch["t"], batch["s"], plane(process)(x, batch["t"]).x0)
        goal = method.student(y, batch["s"]).x0
        expected = pseudo_huber()(method.student(x, batch["t"]).x0, goal)
    torch.testing.assert_close(method.loss(batch).detach(), expected)


def test_it_trains_the_same_for_any_number_of_steps():
    """So a student of four steps is, in one, the student of one."""
    losses = []
    for steps in (1, 4):
        setting = small(VP())
        setting.steps = steps
        method = Latent(setting, stride=5)
        assert method.times() is None
        losses.append(method.loss(drawn(method)).detach())
    assert torch.equal(*losses)


def test_without_preconditioning_the_boundary_is_exact_and_the_network_stays_nearly_itself():
    process = Flow()
    base = perceptron(process, precondition="none", predicts="x0")
    with torch.no_grad():
        base.network.last.bias.fill_(2.0)
    method = Latent(Setting(plane(process), base, 0.9, data=points()))
    assert isinstance(method.student, Boundary)
    x = torch.randn(3, 2)
    answers = method.student(x, torch.tensor([0.0, 1e-3, 0.9], dtype=F64)).x0
    assert torch.equal(answers[0], x[0])
    torch.testing.assert_close(answers[1:], base(x[1:], torch.tensor([1e-3, 0.9], dtype=F64)).x0, rtol=0, atol=0.01)
    assert not isinstance(Latent(small(process)).student, Boundary)  # EDM's preconditioning has it already


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_guidance_inside_the_teachers_step_is_that_of_a_guided_teacher(scale):
    process = EDM()
    method = Latent(small(process, classes=3), guidance=scale)
    batch = drawn(method)
    batch["t"], batch["s"] = torch.full((8,), 2.0, dtype=F64), torch.full((8,), 0.7, dtype=F64)
    x = torch.randn(8, 2)
    teacher = guide(perceptron(process, 1, 3), "cfg", scale=scale)
    with torch.no_grad():
        teacher.model.network.last.weight.add_(0.1)
        method.setting.teacher.model.network.last.weight.add_(0.1)
        expected = step(teacher, x, batch["t"], batch["s"], batch["condition"])
        spent = method.setting.count.evaluations
        torch.testing.assert_close(method.reached(x, batch), expected)
    assert method.setting.count.evaluations - spent == 16  # with its label and without
    plain = Latent(small(process, classes=3))
    assert "scale" not in drawn(plain)


def test_guidance_drawn_for_each_sample():
    process = EDM()
    method = Latent(small(process, classes=3), guidance=[1.0, 3.0])
    batch = drawn(method, 500)
    assert 1.0 <= float(batch["scale"].min()) < 1.05 and 2.95 < float(batch["scale"].max()) <= 3.0
    x = torch.randn(500, 2)
    with torch.no_grad():
        method.setting.teacher.model.network.last.weight.add_(0.1)
        whole = method.reached(x, batch)
        one = {"t": batch["t"][:1], "s": batch["s"][:1], "condition": {"label": batch["condition"]["label"][:1]}}
        fixed = guide(method.setting.teacher.model, "cfg", scale=float(batch["scale"][0]))
        expected = step(fixed, x[:1], one["t"], one["s"], one["condition"])
    torch.testing.assert_close(whole[:1], expected)


def test_at_the_exact_map_with_exact_steps_there_is_no_gradient(monkeypatch):
    process = VP()
    off = Latent(exact(process, off=0.1), stride=10, distance="squared")
    method = Latent(exact(process), stride=10, distance="squared")
    batch = drawn(method, 64)
    flow = method.setting.teacher.model.flow
    monkeypatch.setattr(Latent, "reached", lambda self, x, drawn: flow(x, drawn["t"], drawn["s"]).detach())
    assert float(slopes(method, batch).norm()) < 1e-10
    assert float(slopes(off, batch).norm()) > 1e-3


@pytest.mark.parametrize(
    "options, said",
    [
        ({"stride": 51}, "stride must be 1 to 50 steps of the teacher's table, got 51"),
        ({"stride": 0}, "stride must be 1 to 50"),
        ({"substeps": 3}, "a power of two"),
        ({"guidance": -1.0}, "one scale of at least 0 or a range"),
        ({"guidance": [3.0, 1.0]}, "one scale of at least 0 or a range"),
        ({"guidance": 2.0}, "conditioned on a label or a caption"),
    ],
)
def test_what_it_refuses(options, said):
    with pytest.raises(ValueError, match=said):
        train(made("distiller", "lcm", 1, **options)(small(EDM())), 1)


def test_a_second_guidance_is_refused():
    setting = small(EDM(), classes=3)
    setting.teacher = guide(setting.teacher, "cfg", scale=2.0)
    with pytest.raises(ValueError, match="has guidance already"):
        Latent(setting, guidance=2.0)


@pytest.mark.slow
def test_it_learns():
    method = Latent(small(EDM(), iterations=600, lr=4e-3, ema=0.97), levels=20, stride=2)
    before = distance(method)
    train(method, 600, 128)
    assert distance(method) < before / 3


def test_a_student_that_is_told_the_scale_of_its_pairs():
    method = work_of("lcm", VP(), guidance=(1.0, 4.0), told=True, levels=10)
    assert method.scale_inside == (1.0, 4.0) and "guidance" in method.student.conditions
    batch = method.setting.mine(method.draw(6, torch.Generator().manual_seed(1)))
    scale = batch["condition"]["guidance"]
    assert torch.equal(scale, batch["scale"]) and len(scale.unique()) == 6
    x, label = noisy(method.setting, batch), batch["condition"]["label"]
    guided = guide(method.setting.teacher, "cfg", scale=1.0)
    by_hand = jump(VP(), x, batch["t"], batch["s"], guided(x, batch["t"], label=label, guidance=scale).x0)
    assert torch.equal(method.reached(x, batch), by_hand)
    with torch.no_grad():
        for parameter in method.student.model.network.embedding.extra.parameters():
            parameter.add_(0.3)
    made = [method.student(x, batch["t"], label=label, guidance=told).x0 for told in (scale, scale + 1)]
    assert float((made[0] - made[1]).detach().abs().max()) > 1e-3
    untold = work_of("lcm", VP(), guidance=(1.0, 4.0), levels=10)
    assert untold.scale_inside == 2.5 and "guidance" not in untold.student.conditions
    with pytest.raises(ValueError, match="told=True tells the student its scale of guidance: give a range"):
        work_of("lcm", VP(), told=True)
    with pytest.raises(ValueError, match="needs a range"):
        work_of("lcm", VP(), told=True, guidance=2.0)
