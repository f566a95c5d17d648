"""Implicit score matching against the gradient of `E d(y)` with the law held still, by quadrature."""

from __future__ import annotations

import pytest
import torch
from distillation.matched import (
    F64,
    affine,
    built,
    flat,
    gradient,
    hermite,
    jumper,
    law,
    learned,
    moved,
    one_component,
    resumes,
    setting,
    trapezoid,
)

from fewstep.distillation.score_matching import SIM, SiD, slope
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP

each_process = pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda process: process.name)
STD = 0.7  # of `setting`


def huber(c):
    return lambda y: (y.square().sum(1) + c**2).sqrt()


CASES = {
    "squared": ({"distance": "squared"}, lambda y: y.square().sum(1) / 2),
    "wide": ({"c": 0.5}, huber(0.5)),
    "narrow": ({"c": 0.05}, huber(0.05)),
    "power": ({"distance": "power", "power": 4.0}, lambda y: y.square().sum(1) ** 2 / 4),
}


@each_process
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_distance_on_a_law_held_still(case, process):
    options, d = CASES[case]
    student = jumper(process, torch.tensor([0.3], dtype=F64), torch.tensor([[0.5]], dtype=F64))
    teacher = one_component(torch.tensor([-0.1], dtype=F64), torch.tensor([[0.3]], dtype=F64), process)
    method = SIM(setting(student, teacher, law(student)), **options)
    drawn, weights = trapezoid(process, 0.6)
    found = gradient(method._loss, student, drawn, weights)
    # The fake score as a function of the student's parameters, at states that stand still.
    t = drawn["t"][:1]
    alpha, sigma = process.alpha(t), process.sigma(t)
    mean, root = affine(student)
    x_t = (alpha * (mean + drawn["z"][:, 0] @ root.mT) + sigma * drawn["eps"]).detach()
    variance = root[0, 0] ** 2
    fake = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x_t - alpha * mean)
    y = (fake - teacher(x_t, drawn["t"]).x0) / STD
    answer = flat(torch.autograd.grad((weights * d(y)).sum(), list(student.parameters())))
    torch.testing.assert_close(found, answer, rtol=1e-8, atol=1e-10)
    assert answer.abs().min() > 1e-4


def test_squared_is_sid_up_to_its_weight():
    process = EDM()
    student = jumper(process)
    teacher = one_component(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64), process)
    whole = setting(student, teacher, law(student))
    drawn, _ = hermite(2, process)
    x = SiD(whole).samples(drawn).detach().requires_grad_(True)
    weight = (x - SiD(whole).answers(x, drawn)[1]).detach().abs().mean(1)
    sid, sim = SiD(whole).loss(x, drawn), SIM(whole, "squared").loss(x, drawn)
    torch.testing.assert_close(sid * weight, sim * STD**2, rtol=1e-12, atol=1e-14)
    parts = [torch.autograd.grad(one.sum(), x, retain_graph=True)[0] for one in (sid * weight, sim * STD**2)]
    torch.testing.assert_close(*parts, rtol=1e-12, atol=1e-14)


def test_sid_is_the_fisher_divergence_less_a_times_itself():
    # E (D - D_fake) . (D - x) = E |D - D_fake|^2, so at a the mean of the loss without its division is (1 - a) of it.
    process = EDM()
    student = jumper(process)
    teacher = one_component(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64), process)
    drawn, weights = hermite(2, process)
    for alpha in (0.0, 0.5, 1.2):
        method = SiD(setting(student, teacher, law(student)), alpha)
        x = method.samples(drawn).detach()
        fake, real = method.answers(x, drawn)
        found = (weights * method.loss(x, drawn) * (x - real).abs().mean(1)).sum()
        torch.testing.assert_close(found, (1 - alpha) * (weights * (real - fake).square().mean(1)).sum())


@each_process
@pytest.mark.parametrize("make", [
    SiD, lambda s: SiD(s, 1.2), SIM, lambda s: SIM(s, "squared"), lambda s: SIM(s, "power"),
])  # fmt: skip
def test_it_is_at_rest_at_the_teachers_law_and_not_beside(make, process):
    drawn, weights = hermite(2, process)
    size = []
    for by in (0.0, 0.1):
        student = moved(jumper(process), by)
        method = make(setting(student, law(jumper(process)), law(student)))
        size.append(float(gradient(method._loss, student, drawn, weights).norm()))
    assert size[0] < 1e-10
    assert size[1] > 1e-3


@pytest.mark.parametrize("name, power", [("squared", 1.5), ("pseudo-huber", 1.5), ("power", 1.5), ("power", 1.0)])
def test_slopes_are_gradients(name, power):
    y = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=F64, requires_grad=True)
    norm2 = y.flatten(1).square().sum(1)
    value = {"squared": norm2 / 2, "pseudo-huber": (norm2 + 0.09).sqrt(), "power": norm2 ** (power / 2) / power}
    torch.testing.assert_close(slope(name, 0.3, power)(y), torch.autograd.grad(value[name].sum(), y)[0])


def test_slopes_are_finite_at_zero_and_huber_has_a_width_by_default():
    zero = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    for name in ("squared", "pseudo-huber", "power"):
        found = slope(name)(zero)
        assert torch.equal(found, torch.zeros(2, 3))
        assert torch.autograd.grad(found.sum(), zero)[0].isfinite().all()
    y = torch.tensor([[0.3, 0.4, 0.0, 0.0]])
    torch.testing.assert_close(slope("pseudo-huber")(y), y / (0.25 + 0.2**2) ** 0.5)


def test_an_unknown_distance_and_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="unknown distance of scores 'huber': did you mean 'pseudo-huber'"):
        built("sim", distance="huber")
    with pytest.raises(ValueError, match="c must be positive and the power at least 1"):
        built("sim", c=0.0)
    with pytest.raises(ValueError, match="c must be positive and the power at least 1"):
        built("sim", distance="power", power=0.5)


@pytest.mark.parametrize("name", ["sid", "sim"])
@pytest.mark.slow  # the contract has one of each method
def test_it_resumes_bit_for_bit(name):
    assert resumes(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sid", "sim"])
def test_it_learns(name):
    before, after = learned(name, 400)
    assert after < before / 3
