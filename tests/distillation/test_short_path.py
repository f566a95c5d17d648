"""The shortest path: two hops against one on a Gaussian, what is relaxed, and the loss number by number."""

from __future__ import annotations

import math

import pytest
import torch
from consistent import exact, gaussian, small
from distillation.short import RUN

import fewstep as fs
from fewstep.core.denoiser import Wrapper
from fewstep.core.prediction import Prediction, expand
from fewstep.distillation.fake import denoising
from fewstep.distillation.short_path import ShortDF
from fewstep.distillation.teacher import jump
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64
each_process = pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda p: p.name)


class Off(Wrapper):
    """A denoiser whose x0 is off by a constant at one time."""

    def __init__(self, model, time, by):
        super().__init__(model)
        self.time = time
        self.by = torch.nn.Parameter(torch.tensor(by, dtype=F64))

    def forward(self, x, t, **condition):
        answer = self.model(x, t, **condition).x0
        off = expand((t == self.time).double(), x) * self.by
        return Prediction(answer + off, "x0", x, t, self.process)


def batch_of(process, t, k, n=64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    model = gaussian(process, "denoiser")
    x0 = model.mean + model.log_variances.exp().sqrt() * torch.randn(n, 3, generator=generator, dtype=F64)
    eps = torch.randn(n, 3, generator=generator, dtype=F64)
    times = {name: torch.full((n,), value, dtype=F64) for name, value in (("t", t), ("k", k))}
    return {"x0": x0.detach(), "eps": eps, "condition": {}, **times}


def exact_work(process, **options):
    return ShortDF(exact(process, student=gaussian(process, "denoiser")), **options)


@each_process
def test_with_the_exact_denoiser_one_hop_and_two_agree_as_the_solvers_error_does(process):
    work, gaps = exact_work(process, average=0.0), []
    for h in (0.1, 0.05, 0.025):
        t, k = process.time(-0.5), process.time(-0.5 + h)
        drawn = batch_of(process, t, k)
        x = work.setting.noised(drawn["x0"], drawn["eps"], drawn["t"])
        one, two = work.hops(x, drawn)
        gaps.append(float((one - two).abs().max()))
        relaxing = exact_work(process, margin=1.01 * gaps[-1] / work.setting.data_std, average=0.0)
        assert torch.equal(relaxing.targets(x, drawn), drawn["x0"])  # nothing is relaxed
        assert float(relaxing.relaxed) == 0
        plain = denoising(relaxing.student, drawn["x0"], drawn["eps"], drawn["t"], {})
        assert torch.equal(relaxing._loss(drawn), plain)
    for coarse, fine in zip(gaps, gaps[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(1.0, abs=0.1)
    same = batch_of(process, process.time(-0.5), process.time(-0.5))
    one, two = work.hops(work.setting.noised(same["x0"], same["eps"], same["t"]), same)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@each_process
def test_a_planted_bias_at_one_level_is_pulled_to_the_two_hop_value(process):
    t, k = process.time(-0.5), process.time(0.4)
    setting = exact(process, student=Off(gaussian(process, "denoiser"), t, [8.0, -8.0, 8.0]))
    work = ShortDF(setting, average=0.0)
    drawn = batch_of(process, t, k)
    x = setting.noised(drawn["x0"], drawn["eps"], drawn["t"])
    one, two = work.hops(x, drawn)
    teacher = setting.teacher(x, drawn["t"]).x0
    x_k = jump(process, x, drawn["t"], drawn["k"], teacher)
    torch.testing.assert_close(two, gaussian(process, "denoiser")(x_k, drawn["k"]).x0)
    assert torch.equal(work.targets(x, drawn), two) and float(work.relaxed) == 1  # everywhere
    # What is left of the bias where the loss has no slope is the mean difference of two hops from the exact one.
    (slope,) = torch.autograd.grad(work._loss(drawn).mean(), work.student.by)
    torch.testing.assert_close(slope, 2 * (one - two).mean(0) / 3)
    with torch.no_grad():
        work.student.by.sub_(3 / 2 * slope)
    moved = work.student(x, drawn["t"]).x0
    torch.testing.assert_close((moved - two).mean(0), torch.zeros(3, dtype=F64), rtol=0, atol=1e-10)


def test_the_loss_is_number_by_number_in_the_networks_own_kind():
    setting = small(VP(), classes=3)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in setting.base.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    work = ShortDF(setting, margin=0.05)
    drawn = setting.mine(work.draw(50, torch.Generator().manual_seed(3)))
    assert bool((drawn["t"] > drawn["k"]).all()) and float(drawn["t"].max()) <= setting.start
    x0, t, condition = drawn["x0"], drawn["t"], drawn["condition"]
    x = setting.noised(x0, drawn["eps"], t)
    one, two = work.hops(x, drawn)
    target = torch.where((x0 - one).abs() > (x0 - two).abs() + 0.05 * 0.6, two, x0)
    share = float((target != x0).float().mean())
    assert 0.02 < share < 0.9
    answer = work.student(x, t, **condition).x0
    ratio = (setting.process.alpha(t) / setting.process.sigma(t)).square()
    # EDM's weight: 1 / c_out^2 = (sigma^2 + alpha^2 std^2) / (sigma std)^2.
    weight = (ratio + 1 / 0.6**2).float()
    torch.testing.assert_close(work._loss(drawn), weight * (answer - target).square().mean(1), rtol=1e-3, atol=1e-5)
    assert work.figures() == {"relaxed": pytest.approx(share)}


def test_what_it_costs_and_the_path_network_follows():
    setting = small(EDM(), classes=3)
    work = ShortDF(setting, average=0.5)
    drawn = setting.mine(work.draw(10, torch.Generator().manual_seed(3)))
    work._loss(drawn)
    assert setting.count.evaluations == 10 * (3 + 3)
    with torch.no_grad():
        for parameter in work.student.parameters():
            parameter.add_(1.0)
    setting.step = 1
    work._loss(drawn)
    for ours, theirs in zip(work.path.average.parameters(), work.student.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.5)


def test_a_run_makes_a_denoiser(teacher, points, few_noises):
    made = fs.distill(teacher, "shortdf", steps=2, data=points, **RUN)
    assert made.plan.name == "ddim" and made.model.student.kind == "denoiser" and made.model.student.times is None
    assert all("relaxed" in record for record in made.history if "loss" in record)


def test_what_it_refuses():
    for options, said in (
        ({"margin": -0.1}, "margin must be at least 0, got -0.1"),
        ({"average": 1.0}, r"average must be a decay of at least 0 and below 1, got 1.0"),
    ):
        with pytest.raises(ValueError, match=said):
            ShortDF(small(EDM(), classes=3), **options)
