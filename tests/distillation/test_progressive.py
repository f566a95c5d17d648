from __future__ import annotations

import pytest
import torch

from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.distill import plan_of
from fewstep.distillation.progressive import Progressive
from fewstep.distillation.teacher import jump
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from tests.distillation.regressions import (
    distance,
    gaussian,
    learnt,
    normal,
    on,
    same,
    setting_of,
    stopped_and_whole,
    work_of,
)
from tests.distillation.test_regression import ring

F64 = torch.float64


@pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda process: process.name)
def test_a_step_with_the_target_lands_where_two_of_the_teachers_end(process):
    work = Progressive(setting_of(process, gaussian(process, "denoiser"), steps=2), 8)
    fine, x = work.grids[0], normal(4, 2)
    times = tuple(fine[2 * torch.arange(4) + k] for k in range(3))
    assert float(times[2][-1]) == process.t_zero
    found = jump(process, x, times[0], times[2], work.target(work.setting.teacher, x, times, {}))
    for k in range(4):
        by_hand = x[k : k + 1]
        for t, s in ((times[0], times[1]), (times[1], times[2])):
            ratio = process.sigma(s[k]) / process.sigma(t[k])
            x0 = work.setting.teacher(by_hand, t[k : k + 1]).x0
            by_hand = ratio * by_hand + (process.alpha(s[k]) - process.alpha(t[k]) * ratio) * x0
        assert float((found[k : k + 1] - by_hand).abs().max()) < 1e-15 * max(1.0, float(x.abs().max()))


def test_weights_are_the_larger_of_two_errors_and_their_sum():
    process = VP()
    student, t, x = gaussian(process, "denoiser"), torch.tensor([0.05, 0.3, 0.9, 0.6], dtype=F64), normal(4, 2)
    times = (t, t * 0.8, t * 0.6)
    for weight in ("truncated-snr", "snr+1"):
        work = Progressive(setting_of(process, student), 2, weight)
        goal = work.target(work.setting.teacher, x, times, {})
        made, alpha, sigma = student(x, t).x0, process.alpha(t)[:, None], process.sigma(t)[:, None]
        of_x0, of_eps = made - goal, alpha * (made - goal) / sigma
        errors = [part.square().mean(1) for part in (of_x0, of_eps)]
        expected = torch.maximum(*errors) if weight == "truncated-snr" else sum(errors)
        torch.testing.assert_close(work.loss(work.setting.teacher, x, times, {}), expected)


def test_rounds_halve_and_each_teacher_is_the_student_of_the_last():
    work = work_of("progressive", VP(), steps=2, first=16)
    assert [len(grid) - 1 for grid in work.grids] == [16, 8, 4, 2]
    assert [work.place(step)[0] for step in (0, 6, 7, 13, 14, 19)] == [0, 0, 1, 1, 2, 2]
    on(work, 0, 7)
    assert work.round == 0 and work.old is None
    before = {name: value.clone() for name, value in work.student.state_dict().items()}
    on(work, 7, 10)
    assert work.round == 1 and all(torch.equal(value, before[name]) for name, value in work.old.state_dict().items())
    assert not same((before, dict(work.student.state_dict())))
    rates = [work.rate(step) / work.setting.lr for step in (0, 7, 13, 14, 19)]
    assert rates == pytest.approx([1, 0.95, 0.05, 0.9, 0.15])
    work.setting.iterations = 200  # known late: rounds follow
    assert work.place(10)[0] == 0 and work.place(199)[0] == 2


def test_its_plan_is_every_so_many_of_the_teachers_steps():
    work = work_of("progressive", EDM(), steps=4, first=8)
    made = plan_of(EDM(), work.kind, 4, work.setting.start, work.times())
    assert made.nfe == 4 and list(made.times) == work.grids[0][::2].tolist()


@pytest.mark.slow  # the contract has one of each method
def test_a_resumed_run_has_the_same_bits_in_a_later_round():
    assert same(stopped_and_whole(lambda: work_of("progressive", Flow(), steps=1, first=8)))


def test_a_state_without_a_round_behind_it_forgets_the_old_student():
    work = work_of("progressive", Flow(), steps=1, first=4)
    start = work.state()
    on(work, 0, 12)
    assert work.old is not None
    work.restore(start)
    assert work.old is None and work.round == 0


def test_what_is_refused():
    student = gaussian(VP(), "denoiser")
    with pytest.raises(ValueError, match="halving 32 steps does not lead to 3: give first=48"):
        Progressive(setting_of(VP(), student, steps=3))
    with pytest.raises(ValueError, match="halving 4 steps does not lead to 4: give first=8"):
        Progressive(setting_of(VP(), student, steps=4), 4)
    with pytest.raises(ValueError, match="truncated-snr"):
        Progressive(setting_of(VP(), student), weight="truncated")
    eps = NetworkDenoiser(MLP(), Flow(), "eps", (2,))
    with pytest.raises(ValueError, match="predicts 'eps', which says nothing of x0 where alpha is 0"):
        Progressive(setting_of(Flow(), eps, start=1.0))
    Progressive(setting_of(Flow(), eps, start=0.9))


@pytest.mark.slow
def test_it_learns_a_mixture_in_four_steps():
    teacher = ring()
    data = Dataset(DataSpec("ring", (2,), None, None, 4000), teacher.sample(4000, 5).float(), None)
    torch.manual_seed(0)
    student = NetworkDenoiser(MLP((2,), 48, 2), EDM(), "x0", (2,), precondition="edm", value_range=None)
    before, after, z = learnt("progressive", teacher, student, 4, 2000, data=data)
    assert distance(after, teacher) < distance(before, teacher) / 3
    reference = plan(EDM(), "vab-3", 50, "karras")(teacher, z)
    assert float((after - reference).norm() / reference.norm()) < 0.5
