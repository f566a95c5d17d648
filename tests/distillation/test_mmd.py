"""Maximum mean discrepancy through the steps of a plan: the statistic, its mean, its gradient, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from consistent import small
from distillation.short import RUN

import fewstep as fs
from fewstep.distillation.mmd import MMD, WIDTHS, gaussian, mmd2, polynomial
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

F64 = torch.float64
KERNELS = {"polynomial": polynomial, "gaussian": gaussian(1.3)}
every_kernel = pytest.mark.parametrize("name", KERNELS)
each_process = pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda p: p.name)


def work_of(process=None, steps=3, double=False, **options):
    setting = small(process or EDM(), classes=3, steps=steps)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in setting.base.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    if double:
        setting.base.double()
    return MMD(setting, **options)


def drawn_of(work, batch=12, seed=3):
    return work.setting.mine(work.draw(batch, torch.Generator().manual_seed(seed)))


def kernel_by_hand(name, a, b):
    if name == "polynomial":
        return (sum(float(u * v) for u, v in zip(a, b, strict=True)) / len(a) + 1) ** 3
    square = sum(float((u - v) ** 2) for u, v in zip(a, b, strict=True))
    return sum(math.exp(-square / (2 * (width * 1.3) ** 2)) for width in WIDTHS) / len(WIDTHS)


@every_kernel
def test_the_statistic_is_its_double_sums(name):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 3, generator=generator, dtype=F64), torch.randn(7, 3, generator=generator, dtype=F64)

    def mean(a, b, same):
        terms = [kernel_by_hand(name, u, v) for i, u in enumerate(a) for j, v in enumerate(b) if not (same and i == j)]
        return sum(terms) / len(terms)

    wanted = mean(x, x, True) - 2 * mean(x, y, False) + mean(y, y, True)
    found = mmd2(x, y, KERNELS[name])
    assert found.shape == (5,) and float(found.mean()) == pytest.approx(wanted, rel=1e-12)


@every_kernel
def test_it_is_unbiased_on_equal_laws_and_not_on_others(name):
    generator = torch.Generator().manual_seed(1)
    values = []
    for shift in (0.0, 0.5):
        pairs = [torch.randn(2, 8, 2, generator=generator, dtype=F64) for _ in range(400)]
        values.append(torch.stack([mmd2(x + shift, y, KERNELS[name]).mean() for x, y in pairs]))
    for value, equal in zip(values, (True, False), strict=True):
        errors = float(value.mean() / (value.std() / 20))
        assert (abs(errors) < 3) == equal
    assert bool((values[0] < 0).any())


@every_kernel
@each_process
def test_its_gradient_through_all_steps_is_that_of_central_differences(name, process):
    work = work_of(process, double=True, kernel=name)
    drawn = drawn_of(work)
    assert work.plan.nfe == 3 and drawn["z"].dtype == F64
    parameters = list(work.student.parameters())
    gradient = torch.autograd.grad(work._loss(drawn).mean(), parameters)
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        directions = [torch.randn(p.shape, generator=generator, dtype=F64) for p in parameters]
        exact = sum(float((g * d).sum()) for g, d in zip(gradient, directions, strict=True))
        values, h = [], 1e-5
        for step in (h, -2 * h, h):  # to the one side, to the other, and back
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(step * d)
                values.append(float(work._loss(drawn).mean()))
        assert exact == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-9)


def test_its_samples_are_the_plans_and_it_is_paid_for_them():
    work = work_of()
    drawn = drawn_of(work)
    plan = fs.plan(EDM(), "ddim", timesteps=[*work.times(), EDM().t_zero])
    assert plan.ops == work.plan.ops and work.times()[0] == work.setting.start
    torch.testing.assert_close(work.samples(drawn), plan(work.student, drawn["z"], **drawn["condition"]))
    assert work.setting.count.evaluations == 12 * 3 * 4


def test_features_of_a_frozen_block_and_of_the_digits_classifier():
    work = work_of(features="network", kernel="gaussian")
    drawn = drawn_of(work)
    found = work.features(drawn["x0"], drawn["condition"])
    assert found.shape == (12, 32)
    assert all(
        torch.isfinite(g).all() for g in torch.autograd.grad(work._loss(drawn).mean(), list(work.student.parameters()))
    )
    assert not any(p.requires_grad for p in work.block.read.model.parameters())
    pictures = torch.rand(4, 1, 8, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(work_of(features="digits").features(pictures, {}).sum(), pictures)
    assert float(slope.abs().max()) > 0


def test_a_run_fixes_the_plan_to_its_steps(teacher, points, few_noises):
    made = fs.distill(teacher, "mmd-ddm", data=points, **RUN)
    assert made.plan.name == "ddim" and made.plan.nfe == 5 and made.model.student.kind == "denoiser"
    with pytest.raises(ValueError, match="it takes at most 5 steps, got 6"):
        fs.sample(made.model, 2, steps=6, label=0)
    slim = fs.distill(teacher, "mmd-ddm", steps=2, lora=2, data=points, **RUN)
    assert slim.plan.nfe == 2 and slim.adapter is not None


def test_what_it_refuses():
    for options, said in (
        ({"kernel": "polinomial"}, "unknown kernel 'polinomial': did you mean 'polynomial'"),
        ({"features": "pixel"}, "unknown features 'pixel': did you mean 'pixels'"),
        ({"features": "netwrk"}, "unknown features 'netwrk': did you mean 'network'"),
    ):
        with pytest.raises(ValueError, match=said):
            work_of(**options)
    with pytest.raises(ValueError, match="needs at least 2 samples of both laws, got 1 and 3"):
        mmd2(torch.zeros(1, 2), torch.zeros(3, 2), polynomial)
