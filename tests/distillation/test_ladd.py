"""Adversarial distillation on the teacher's blocks: both losses written out, their parts, costs and refusals."""

from __future__ import annotations

import pytest
import torch
from consistent import small
from distillation.short import RUN

import fewstep as fs
from fewstep.core.prediction import expand
from fewstep.distillation.discriminator import r1
from fewstep.distillation.ladd import LADD
from fewstep.distillation.levels import at_shares
from fewstep.networks.blocks import blocks_of
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

each_process = pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda p: p.name)


def work_of(process=None, steps=2, **options):
    setting = small(process or EDM(), classes=3, steps=steps)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # so that nothing is hidden behind a layer of zeros
        for parameter in setting.base.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return LADD(setting, **options)


def drawn_of(work, batch=60, seed=3):
    return work.setting.mine(work.draw(batch, torch.Generator().manual_seed(seed)))


@each_process
def test_times_and_levels_are_those_of_the_lists(process):
    work = work_of(process, 3, levels=(0.1, 0.5))
    drawn = drawn_of(work, 90)
    assert set(drawn["from"].tolist()) == set(work.times()) and work.times()[0] == work.setting.start
    levels = at_shares(process, work.setting.start, torch.tensor([0.1, 0.5], dtype=torch.float64))
    assert set(drawn["t"].tolist()) == set(levels.tolist())
    assert len(work.critic.heads.heads) == len(blocks_of(work.setting.base)) == 2


@each_process
def test_the_students_loss_is_hinge_of_each_head_and_the_weighted_regression(process):
    work = work_of(process, gan=0.7, distil=0.4)
    drawn, setting = drawn_of(work), work.setting
    t, condition, eps = drawn["t"], drawn["condition"], drawn["eps"]
    x0 = work.student(setting.noised(drawn["x0"], eps[:, 0], drawn["from"]), drawn["from"], **condition).x0
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = expand(alpha, x0) * x0 + expand(sigma, x0) * eps[:, 2]
    logits = work.critic.heads.each(x, t, condition)
    assert logits.shape == (2, 60)
    torch.testing.assert_close(work.critic.heads(x, t, condition), logits.sum(0))
    target = setting.teacher(x, t, **condition).x0
    weight = (alpha / (alpha**2 + sigma**2).sqrt()).float()
    wanted = -0.7 * logits.mean(0) + 0.4 * weight * (x0 - target).square().mean(1)
    torch.testing.assert_close(work._loss(drawn), wanted)
    if process.name == "vp":
        torch.testing.assert_close(weight, alpha.float())
    (only,) = torch.autograd.grad(work_of(process, gan=0.0)._loss(drawn).sum(), x0, allow_unused=True)
    assert only is None


def test_the_critics_loss_is_hinge_of_each_head_and_r1():
    work = work_of(r1=0.3)
    drawn, setting = drawn_of(work), work.setting
    t, condition, eps = drawn["t"], drawn["condition"], drawn["eps"]
    with torch.no_grad():
        made = setting.noised(work.answers(drawn), eps[:, 2], t)
    real = setting.noised(drawn["x0"], eps[:, 1], t)
    heads = work.critic.heads
    ours, theirs = heads.each(real, t, condition), heads.each(made, t, condition)
    wanted = (torch.relu(1 - ours) + torch.relu(1 + theirs)).mean(0) + 0.15 * r1(heads, real, t, condition)
    torch.testing.assert_close(work._critic_loss(drawn), wanted)
    parameters = list(work.student.parameters())
    found = torch.autograd.grad(work._critic_loss(drawn).sum(), parameters, allow_unused=True)
    assert all(gradient is None for gradient in found)


def test_what_it_costs():
    for options, critic, student in (({}, 1 + 2 + 6, 3 + 3 + 1), ({"r1": 0.0, "distil": 0.0}, 1 + 2, 3 + 3)):
        work = work_of(**options)
        count = work.setting.count
        work._critic_loss(drawn_of(work, 10))
        assert count.evaluations == 10 * critic
        work._loss(drawn_of(work, 10))
        assert count.evaluations == 10 * (critic + student)
    alone = work_of(gan=0.0)
    alone._loss(drawn_of(alone, 10))
    assert list(alone.players) == ["student"] and alone.setting.count.evaluations == 10 * 4


def test_a_run_makes_a_student_of_jumps(teacher, points, few_noises):
    made = fs.distill(teacher, "ladd", steps=2, data=points, **RUN)
    assert made.plan.name == "multistep-consistency" and made.plan.nfe == 2 and made.model.student.kind == "jump"


def test_what_it_refuses():
    for options, said in (
        ({"gan": -1.0}, "gan, distil and r1 must be at least 0, and one of the first two above, got -1, 1 and 0.01"),
        ({"gan": 0.0, "distil": 0.0}, "one of the first two above, got 0, 0"),
        ({"levels": []}, "levels must be shares of the way, 0 to 1, at least one"),
        ({"levels": [0.5, 1.2]}, r"levels must be shares of the way, 0 to 1, at least one, got \[0.5, 1.2\]"),
        ({"features": ["block.9"]}, "unknown block 'block.9'"),
    ):
        with pytest.raises(ValueError, match=said):
            work_of(**options)
