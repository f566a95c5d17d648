"""A base's first steps before its student's: the ends, what is in between written out, and what is refused."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

import fewstep as fs
from fewstep.conditions.label import Label
from fewstep.core.noise import Noise
from fewstep.core.prediction import Prediction
from fewstep.core.student import Student
from fewstep.denoisers.folder import load_model
from fewstep.denoisers.network import NetworkDenoiser
from fewstep.distillation.origin import plan_of
from fewstep.networks.mlp import MLP
from fewstep.processes.flow import Flow
from fewstep.processes.ve import EDM
from fewstep.processes.vp import VP
from fewstep.sampling.hybrid import hybrid
from fewstep.sampling.sample import choose_plan

PROCESSES = [EDM(), VP(), Flow()]


def denoiser(process, seed=0, classes=3):
    torch.manual_seed(seed)
    network = MLP((2,), 12, 2, classes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    kinds = {"label": Label(classes)}
    return NetworkDenoiser(network, process, predicts="x0", shape=(2,), conditions=kinds, value_range=None).eval()


def student_of(process, count=2, kind="jump", seed=1):
    start, made = process.time(-1.5), denoiser(process, seed)
    times = (start, *(process.time(-1.5 + 0.8 * k) for k in range(1, count)))
    made.student = Student(kind, "dmd2", "base", start, times)
    made.plan = plan_of(process, kind, count, start, times)
    return made


def drawn(model, plan=None, n=5, **options):
    noise = Noise(3).normal(0, (n, 2))
    return (plan or model.plan)(model, noise, seed=4, label=torch.arange(n) % 4, **options)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
def test_its_ends_are_the_student_and_the_base_bit_for_bit(process):
    base, student = denoiser(process), student_of(process)
    assert torch.equal(drawn(hybrid(base, student, 0)), drawn(student))
    whole = hybrid(base, student, 2, nfe=2)
    assert torch.equal(drawn(whole), drawn(base, whole.plan)) and whole.plan == choose_plan(base, nfe=2)
    assert torch.equal(fs.sample(whole, 4, label=1), fs.sample(base, 4, label=1, nfe=2))
    assert base.plan is None and student.plan.nfe == 2


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
def test_the_bases_first_step_then_the_student(process):
    base, student = denoiser(process), student_of(process)
    made, (_, second) = hybrid(base, student, 1), student.student.times
    assert made.plan.nfe == 2 and [op.t for op in made.plan.evaluations] == [process.t_max, second]
    noise, label, times = Noise(3).normal(0, (5, 2)), torch.arange(5) % 4, [process.t_max, second]
    x = noise * process.sigma(times[0])
    first = base(x, torch.full((5,), times[0], dtype=torch.float64), label=label)
    ratio = process.sigma(second) / process.sigma(times[0])
    x = ratio * x + (process.alpha(second) - process.alpha(times[0]) * ratio) * first.x0
    last = student(x, torch.full((5,), second, dtype=torch.float64), label=label).x0
    torch.testing.assert_close(drawn(made), last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps, nfe, own", [(1, 2, 1), (2, 3, 1), (3, 4, 1), (2, 4, 2)])
def test_a_student_is_entered_where_it_was_trained_and_each_model_answers_its_part(steps, nfe, own):
    process = VP()
    base, student = denoiser(process), student_of(process, own)
    seen = []

    class Heard(NetworkDenoiser):
        def forward(self, x, t, **condition) -> Prediction:
            seen.append((self.who, float(t.reshape(-1)[0])))
            return super().forward(x, t, **condition)

    for model, who in ((base, "base"), (student, "student")):
        model.__class__, model.who = Heard, who
    made = hybrid(base, student, steps, nfe)
    drawn(made, n=3)
    assert [who for who, _ in seen] == ["base"] * steps + ["student"] * (nfe - steps)
    assert [t for _, t in seen][steps:] == pytest.approx(list(student.student.times[own - nfe + steps :]))
    assert seen[0][1] == process.t_max and all(a > b for (_, a), (_, b) in zip(seen, seen[1:], strict=False))


def test_a_student_of_every_time_and_one_of_means_take_part():
    process = EDM()
    base, free = denoiser(process), student_of(process)
    free.student = dataclasses.replace(free.student, times=None)
    free.plan = plan_of(process, "jump", 4, free.student.start, None)
    made = hybrid(base, free, 2)
    assert made.plan.nfe == 4 and [op.t for op in made.plan.evaluations][2:] == list(free.plan.times[2:4])
    means = student_of(process, 3, "denoiser")
    assert not hybrid(base, means, 1).plan.stochastic and hybrid(base, means, 1).plan.nfe == 3


def test_it_saves_and_is_the_model_of_its_plan(tmp_path):
    base, student = denoiser(EDM()), student_of(EDM(), 3)
    made = hybrid(base, student, 1)
    again = load_model(fs.save(made, tmp_path / "both"))
    assert torch.equal(drawn(again), drawn(made)) and again.plan == made.plan
    torch.testing.assert_close(fs.sample(made, 3, label=2), fs.sample(again, 3, label=2))


def test_what_is_refused():
    base, student = denoiser(EDM()), student_of(EDM())
    for (one, other, *how), message in (
        ((base, student, 3, 2), "a plan of 2 evaluations has at most 2 steps of the base, got 3"),
        ((base, student, -1), "steps must be a whole number of at least 0, got -1"),
        ((denoiser(VP()), student), "base and student must have the same process, got "),
        ((denoiser(EDM(), classes=5), student), r"base and student must have the same conditions, got .*5.*3"),
        ((base, denoiser(EDM())), "the second model was not distilled"),
        ((base, student, 1, 4), "this student takes at most 2 steps after those of the base, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            hybrid(one, other, *how)
    jumps = copy.deepcopy(student)
    jumps.student = Student("map", "ctm")
    with pytest.raises(ValueError, match="a flow map is told the time to go to"):
        hybrid(base, jumps)
