from __future__ import annotations

import pytest
import torch

from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.boot import Boot
from fewstep.distillation.distill import plan_of
from fewstep.distillation.teacher import jump
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan
from tests.distillation.regressions import gaussian, learnt, normal, same, setting_of, stopped_and_whole, work_of
from tests.distillation.test_regression import ring

F64 = torch.float64
STARTS = [(EDM(), None), (VP(), None), (Flow(), None), (Flow(), 1.0)]


def exact(process, start):
    student = gaussian(process)
    return Boot(setting_of(process, student, **({} if start is None else {"start": start})))


@pytest.mark.parametrize("process, start", STARTS)
def test_the_signal_of_the_exact_map_solves_its_equation(process, start):
    work, z = exact(process, start), normal(6, 2)
    s = torch.linspace(0.1, 0.8, 6, dtype=F64) * work.setting.start
    s.requires_grad_(True)
    y = work.signal(z, s, {})
    x = process.alpha(s)[:, None] * y + process.sigma(s)[:, None] * z
    right = y - work.setting.teacher(x, s).x0
    for k in range(2):
        (dy,) = torch.autograd.grad(y[:, k].sum(), s, retain_graph=True)
        (dl,) = torch.autograd.grad((-process.log_snr(s)).sum(), s, retain_graph=True)
        torch.testing.assert_close(dy / dl, right[:, k], rtol=0, atol=1e-13)


@pytest.mark.parametrize("process, start", STARTS)
def test_the_signal_is_the_state_without_its_noise(process, start):
    work, z = exact(process, start), normal(6, 2)
    s, t = torch.full((6,), 0.3 * work.setting.start, dtype=F64), torch.full((6,), work.setting.start, dtype=F64)
    x = jump(process, work.setting.begin(z), t, s, work.g(z, s, {}))
    alpha, sigma = process.alpha(s)[:, None], process.sigma(s)[:, None]
    torch.testing.assert_close(work.signal(z, s, {}), (x - sigma * z) / alpha, rtol=0, atol=1e-13)
    torch.testing.assert_close(x, work.student.flow(work.setting.begin(z), t, s), rtol=0, atol=1e-13)
    assert float(work.edge(z, {}).detach().abs().max()) < 1e-28  # the boundary holds for the exact map


@pytest.mark.parametrize("process, start", STARTS)
def test_the_target_is_a_step_of_ddim(process, start):
    work, z = exact(process, start), normal(5, 2)
    process = work.setting.process
    shares = torch.tensor([0.0, 0.2, 0.5, 0.7, 0.9], dtype=F64)
    t = (1 - shares) * work.setting.start + shares * process.t_min
    s = torch.where(shares < 0.9, 0.7 * t, process.t_zero)
    begin = torch.full_like(t, work.setting.start)
    x = work.setting.begin(z)
    at = work.student.flow(x, begin, t)
    after = jump(process, at, t, s, work.setting.teacher(at, t).x0)
    found = jump(process, x, begin, s, work.target(z, t, s, {}))
    torch.testing.assert_close(found, after.detach(), rtol=0, atol=1e-13)


def test_the_exact_map_misses_its_target_by_the_square_of_the_step():
    work, z = exact(VP(), None), normal(20, 2)
    t = torch.full((20,), 0.4, dtype=F64)
    misses = [
        float((work.g(z, t - h, {}) - work.target(z, t, t - h, {})).detach().abs().mean()) for h in (0.02, 0.01, 0.005)
    ]
    assert 3.7 < misses[0] / misses[1] < 4.3 and 3.7 < misses[1] / misses[2] < 4.3


def test_draws_are_neighbours_on_the_way_and_no_data_are_opened():
    work = work_of("boot", EDM(), levels=8)
    work.setting.known = lambda: pytest.fail("data were opened")
    drawn = work.draw(400, torch.Generator().manual_seed(0))
    t, s = drawn["t"], drawn["s"]
    assert bool((t > s).all()) and 25 < int((s == 0).sum()) < 80  # an eighth of them ends clean
    inner = s > 0
    gap = (t[inner] ** (1 / 7) - s[inner] ** (1 / 7)).diff().abs().max()
    assert float(gap) < 1e-12
    work._loss(drawn)


def test_the_student_is_a_map_from_the_start_in_one_step():
    work = work_of("boot", VP())
    made = plan_of(VP(), work.kind, 1, work.setting.start, work.times())
    z, label = normal(3, 2).float(), torch.tensor([0, 1, 2])
    clean = torch.full((3,), VP().t_zero, dtype=F64)
    torch.testing.assert_close(made(work.student, z, label=label), work.g(z, clean, {"label": label}).detach())
    assert made.nfe == 1


@pytest.mark.slow  # the contract has one of each method
def test_a_resumed_run_of_boot_has_the_same_bits():
    assert same(stopped_and_whole(lambda: work_of("boot", Flow(), boundary=0.5)))


def test_what_is_refused():
    student = gaussian(VP())
    with pytest.raises(ValueError, match="the student of boot takes one step, not 2"):
        Boot(setting_of(VP(), student, steps=2))
    with pytest.raises(ValueError, match="levels must be at least 1 and boundary at least 0, got 0 and -1"):
        Boot(setting_of(VP(), student), 0, -1)


@pytest.mark.slow
def test_boot_learns_a_mixture_without_data():
    torch.manual_seed(0)
    network = MLP((2,), 48, 2, extras={"target": 1})
    student = NetworkDenoiser(network, EDM(), "x0", (2,), precondition="edm", value_range=None)
    from fewstep.conditions.time import Time

    student.conditions = {"to": Time()}
    before, after, z = learnt("boot", ring(), student, 1, 1500)
    reference = plan(EDM(), "vab-3", 50, "karras")(ring(), z)
    first, last = (float((x - reference).norm() / reference.norm()) for x in (before, after))
    assert last < first / 3
