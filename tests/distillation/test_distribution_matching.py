"""Distribution matching against the KL divergence of Gaussians, by quadrature."""

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
)

from fewstep.core.prediction import expand
from fewstep.distillation import distribution_matching
from fewstep.distillation.distribution_matching import DMD, DMD2, DiffInstruct, normalised
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.build import plan

PROCESSES = [EDM(), VP(), Flow()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
OTHER = torch.tensor([-0.1, 0.4], dtype=F64), torch.tensor([[0.3, -0.1], [-0.1, 0.7]], dtype=F64)


def methods(process, student, teacher, fake):
    cheap = {"pairs": 4, "plan": plan(process, "ddim", 2)}
    whole = setting(student, teacher, fake)
    return {"diff-instruct": DiffInstruct(whole), "dmd": DMD(whole, **cheap), "dmd2": DMD2(whole, gan=0)}


def kl(student, process, drawn):
    """The KL divergence of the student's diffused law from the other Gaussian's, averaged over the levels with the
    weight `sigma^2 / alpha^2`."""
    mean, root = affine(student)
    total = 0.0
    times = drawn["t"].unique()
    for t in times:
        alpha, sigma = process.alpha(t), process.sigma(t)
        noise = sigma**2 * torch.eye(2, dtype=F64)
        q, p = alpha**2 * root @ root.mT + noise, alpha**2 * OTHER[1] + noise
        apart = alpha * (mean - OTHER[0])
        inside = torch.trace(torch.linalg.solve(p, q)) + apart @ torch.linalg.solve(p, apart)
        total = total + sigma**2 / alpha**2 * (inside + torch.logdet(p) - torch.logdet(q)) / 2 / len(times)
    return total


@each_process
@pytest.mark.parametrize("name", ["diff-instruct", "dmd", "dmd2"])
def test_the_gradient_is_that_of_the_divergence_of_gaussians(name, process, monkeypatch):
    monkeypatch.setattr(distribution_matching, "normalised", lambda fake, real, x: fake - real)
    student = jumper(process)
    method = methods(process, student, one_component(*OTHER, process), law(student))[name]
    drawn, weights = hermite(2, process)
    found = gradient(lambda batch: method.loss(method.samples(batch), batch), student, drawn, weights)
    exact = (
        flat(torch.autograd.grad(kl(student, process, drawn), list(student.parameters()))) / 2
    )  # mean over 2 numbers
    exact = exact / (0.7 if name == "diff-instruct" else 1)
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-10)


@each_process
@pytest.mark.parametrize("name", ["diff-instruct", "dmd", "dmd2"])
def test_it_is_at_rest_at_the_teachers_law_and_not_beside(name, process):
    drawn, weights = hermite(2, process)
    size = []
    for by in (0.0, 0.1):
        student, teacher = moved(jumper(process), by), law(jumper(process))
        method = methods(process, student, teacher, law(student))[name]
        if name == "dmd":  # its pairs lie on the exact map
            with torch.no_grad():
                ends = jumper(process)(
                    method.setting.begin(method.pairing.z), method.setting.times(method.times()[0], 4)
                )
            method.pairing.x0 = ends.x0
            drawn["rows"] = torch.arange(len(weights)) % 4
        size.append(float(gradient(method._loss, student, drawn, weights).norm()))
    assert size[0] < 1e-10
    assert size[1] > 1e-3


def test_the_fake_score_is_at_rest_at_the_students_law():
    process = EDM()
    student = jumper(process)
    drawn, weights = hermite(2, process)
    size = []
    for by in (0.0, 0.1):
        method = DiffInstruct(setting(student, law(student), moved(law(student), by)))
        loss = (weights * method._fake_loss(drawn)).sum()
        size.append(float(flat(torch.autograd.grad(loss, list(method.fake.parameters()))).norm()))
    assert size[0] < 1e-10
    assert size[1] > 1e-3


def test_the_difference_is_divided_by_the_mean_of_each_sample():
    fake, real, x = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, -2.0]])
    torch.testing.assert_close(normalised(fake, real, x), torch.tensor([[1.0, 0.0]]))


def test_dmd_adds_a_quarter_of_the_squared_error_from_its_pairs():
    process = EDM()
    student = jumper(process)
    method = DMD(setting(student, one_component(*OTHER, process), law(student)), pairs=4, plan=plan(process, "ddim", 2))
    drawn, _ = hermite(2, process)
    drawn["rows"] = torch.arange(len(drawn["t"])) % 4
    mu, root = affine(student)
    error = mu + method.pairing.z.double() @ root.mT - method.pairing.states[:, -1]
    found = method._loss(drawn) - method.loss(method.samples(drawn), drawn)
    torch.testing.assert_close(found, 0.25 * error.square().mean(1)[drawn["rows"]])


def test_the_heads_train_with_the_fake_network_and_move_the_student():
    method = built("dmd2", gan=0.5, classify=0.25)
    drawn = method.setting.mine(method.draw(5, torch.Generator().manual_seed(0)))
    x = method.samples(drawn)
    alone = built("dmd2", gan=0)
    fake = method.fake_loss(x.detach(), drawn) - alone.fake_loss(x.detach(), drawn)
    real = method.discriminator(method.setting.noised(drawn["x0"], drawn["noise"], drawn["t"]), drawn["t"],
                                drawn["condition"])  # fmt: skip
    x_t = method.setting.noised(x, drawn["eps"], drawn["t"])
    logits = method.discriminator(x_t, drawn["t"], drawn["condition"])
    softplus = torch.nn.functional.softplus
    torch.testing.assert_close(fake, 0.25 * (softplus(-real) + softplus(logits)))
    torch.testing.assert_close(method.loss(x, drawn) - alone.loss(x, drawn), 0.5 * softplus(-logits))
    moves = method.players["fake"].parameters
    parts = torch.autograd.grad(fake.sum(), moves, allow_unused=True)
    reached = {name for (name, _), part in zip(method.players["fake"].module.named_parameters(), parts, strict=True)
               if part is not None and part.any()}  # fmt: skip
    assert any(name.startswith("heads") for name in reached) and any(name.startswith("fake") for name in reached)


def test_without_simulation_later_steps_begin_at_noised_real_samples():
    method = built("dmd2", gan=0, simulate=False)
    drawn = method.setting.mine(method.draw(5, torch.Generator().manual_seed(0))) | {"place": 1}
    t = method.setting.times(method.times()[1], 5)
    x_t = drawn["x0"] + expand(t.float(), drawn["x0"]) * drawn["noise"]
    torch.testing.assert_close(method.samples(drawn), method.student(x_t, t, **drawn["condition"]).x0)


def test_the_teachers_own_samples_stand_in_for_data():
    method = built("dmd2", real="teacher", pairs=7, plan=plan(EDM(), "ddim", 2))
    method.setting.data = None
    drawn = method.draw(20, torch.Generator().manual_seed(0))
    found = (drawn["x0"][:, None] == method.pairing.states[:, -1]).all(-1)
    assert found.any(1).all()
    assert (method.pairing.condition["label"][found.float().argmax(1)] == drawn["condition"]["label"]).all()


@pytest.mark.parametrize("name, options", [("diff-instruct", {}), ("dmd2", {"ratio": 3}), ("dmd2", {"gan": 0})])
@pytest.mark.slow  # the contract has one of each method
def test_it_resumes_bit_for_bit(name, options):
    assert resumes(name, **options)


@pytest.mark.slow  # the contract has one of each method
def test_dmd_resumes_bit_for_bit():
    assert resumes("dmd", steps=1, pairs=9, plan=plan(EDM(), "ddim", 2))


def test_what_it_refuses():
    for name, options, said in [
        ("diff-instruct", {"ratio": 0}, "ratio must be at least 1"),
        ("dmd", {}, "takes one step, not 2"),
        ("dmd2", {"gan": -1.0}, "must be at least 0"),
        ("dmd2", {"real": "date"}, "did you mean 'data'"),
        ("dmd2", {"adversarial": "hing"}, "did you mean 'hinge'"),
        ("dmd2", {"features": ["block.9"]}, "unknown block 'block.9'"),
        ("dmd2", {"ration": 2}, "did you mean 'ratio'"),
    ]:
        with pytest.raises(ValueError, match=said):
            built(name, **options)
    without = built("dmd2")
    without.setting.data = None
    with pytest.raises(ValueError, match="data"):
        without.draw(4, torch.Generator())


def test_dmd2_learns():
    before, after = learned("dmd2", 90, lr=5e-3)
    assert after < before / 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diff-instruct", "dmd"])
def test_the_others_learn(name):
    before, after = learned(name, 400)
    assert after < before / 3


@pytest.mark.slow
def test_two_steps_learn():
    before, after = learned("dmd2", 600, steps=2)
    assert after < before / 3
