from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
from fewstep.distillation.watch import Check, Watch, compared, spoken
from fewstep.searching.problem import Problem

GENERATOR = torch.Generator().manual_seed(0)
TEACHER = torch.randn(64, 2, generator=GENERATOR)
GROUP = torch.arange(64) % 2


def test_a_student_that_answers_as_its_teacher_has_nothing_wrong():
    found = compared(TEACHER, TEACHER, GROUP)
    assert found.deviation == pytest.approx((1.0, 1.0)) and found.drift == 0 and found.coverage == 1
    assert found.distance == pytest.approx(0, abs=1e-9) and found.collapsed == ""


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (TEACHER * 0.4, "its standard deviation is 0.40 of the teacher's"),
        (TEACHER * 2.5, "its standard deviation is 2.50 times the teacher's"),
        (TEACHER + 10, "it covers 0.00 of the teacher's samples"),
        (TEACHER * math.nan, "its samples are not finite"),
    ],
)
def test_what_is_wrong_is_named(samples, said):
    assert compared(samples, TEACHER, GROUP).collapsed == said


def test_a_collapse_within_one_condition_is_seen():
    narrow = torch.where((GROUP == 1)[:, None], TEACHER * 0.1, TEACHER)
    found = compared(narrow, TEACHER, GROUP)
    assert found.deviation == pytest.approx((0.1, 1.0)) and "0.10 of the teacher's" in found.collapsed
    assert compared(narrow, TEACHER, None).collapsed == ""


def test_drift_and_distance_are_those_of_a_shift():
    found = compared(TEACHER + torch.tensor([3.0, 4.0]), TEACHER, None)
    assert found.distance == pytest.approx(25.0, rel=1e-6)  # Frechet
    check = Check((0.9, 1.2), 0.1, 0.75, 25.0)
    said = "distance 25 to the teacher's samples, deviation 0.90 to 1.20, coverage 0.75"
    assert spoken(check.record()) == said
    assert found.drift == pytest.approx(5 / float(TEACHER.double().std(0).norm()), rel=1e-6)


def test_the_best_weights_are_kept_and_two_bad_checks_are_a_collapse():
    good, better = (Check((1.0, 1.0), 0.0, 1.0, distance) for distance in (0.5, 0.2))
    bad = Check((0.3, 1.0), 0.0, 1.0, 2.0)
    watch, kept, memory = Watch(Problem(TEACHER, TEACHER, {}, 0, 0)), {}, {}
    for found, value in ((good, 1.0), (bad, 2.0), (better, 3.0), (bad, 4.0)):
        assert watch.judge(found, {"w": torch.tensor(value)}, kept, memory, False) == ""
    assert float(kept["w"]) == 3.0 and memory == {"best": 0.2, "wrong": 1, "well": True}
    said = watch.judge(bad, {"w": torch.tensor(5.0)}, kept, memory, False)
    assert said == "its standard deviation is 0.30 of the teacher's" and float(kept["w"]) == 3.0


def test_a_student_that_begins_narrow_has_half_of_the_run_to_widen():
    bad, memory = Check((0.3, 1.0), 0.0, 1.0, 2.0), {}
    watch = Watch(Problem(TEACHER, TEACHER, {}, 0, 0))
    assert [watch.judge(bad, {}, {}, memory, late) for late in (False, False, False, True)] == [""] * 4
    assert watch.judge(bad, {}, {}, memory, True) != ""


def test_a_check_runs_the_students_plan(teacher):
    noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))
    label = torch.arange(16) % 3
    plan = fs.plan(teacher.process, "ddim", 2)
    reference = plan(teacher, noise, label=label)
    watch = Watch(Problem(noise, reference, {"label": label}, 0, 0))
    assert watch.check(teacher, plan).distance == pytest.approx(0, abs=1e-9)
    assert torch.equal(watch.group, label)

    with torch.no_grad():
        teacher.network.last.weight.fill_(math.nan)
    assert watch.check(teacher, plan).collapsed == "its samples are not finite"
