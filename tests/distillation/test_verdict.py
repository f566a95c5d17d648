from __future__ import annotations

import pytest
import torch

import fewstep as fs
from fewstep.data.dataset import Dataset, DataSpec
from fewstep.denoisers.gaussian_map import GaussianMap
from fewstep.denoisers.gaussian_mixture import GaussianMixture
from fewstep.distillation import verdict as module
from fewstep.distillation.distill import plan_of
from fewstep.distillation.verdict import said, unseen, verdict
from fewstep.metrics.frechet import frechet
from fewstep.processes.ve import EDM

MEAN, VARIANCE = torch.tensor([0.3, -0.2]), torch.tensor([0.04, 0.25])


def test_an_exact_student_beats_every_plan_and_is_said_to(monkeypatch):
    for name, value in {"FEW": (1,), "TRAIN": 32, "HELD_OUT": 24, "ITERATIONS": 2}.items():
        monkeypatch.setattr(module, name, value)
    process = EDM()
    teacher = GaussianMixture(torch.ones(1), MEAN[None], torch.diag(VARIANCE)[None], process)
    student = GaussianMap(MEAN, VARIANCE, process, answers="jump")
    problem = unseen(teacher, 0, 200, None)
    plan = plan_of(process, "jump", 1, process.t_max, None)
    rows = verdict(teacher, student, plan, problem, None, paired=True)
    first, reference, *plans = rows
    assert first["role"] == "student" and first["endpoint"] < 1e-3 and first["frechet"] < 1e-6
    assert reference["role"] == "teacher" and reference["nfe"] == 100 and reference["endpoint"] is None
    assert {row["nfe"] for row in plans} == {1} and {row["role"] for row in plans} == {"plan", "learned"}
    assert all(row["endpoint"] > first["endpoint"] for row in plans if row["role"] == "plan")
    assert all(row["n"] == 200 and row["against"] == "the reference's samples" for row in rows)
    assert all(row["seconds"] > 0 for row in rows)
    assert "does not reach the student" in said(rows)[0]
    monkeypatch.setattr(module, "_best_plans", lambda *_: [])
    loose = verdict(teacher, student, plan, problem, None, paired=False, real=False)
    assert loose[0]["endpoint"] is None and loose[0]["against"] == "the teacher's samples"


@pytest.mark.parametrize(("count", "n"), [(500, 200), (120, 60), (14, None)])
def test_real_samples_are_held_against_others(count, n, monkeypatch):
    monkeypatch.setattr(module, "_best_plans", lambda *_: [])
    monkeypatch.setattr(module, "REFERENCE_NFE", 10)
    process = EDM()
    teacher = GaussianMixture(torch.ones(1), MEAN[None], torch.diag(VARIANCE)[None], process)
    images = teacher.sample(count, seed=3).float()
    data = Dataset(DataSpec("drawn", (2,), (-1.0, 1.0), None, count), images)
    problem = unseen(teacher, 0, 200, None)
    plan = plan_of(process, "jump", 1, 5.0, None)
    rows = verdict(teacher, teacher, plan, problem, data, paired=True)
    assert [row["role"] for row in rows[:2]] == ["student", "teacher"]
    if n is None:
        assert len(rows) == 2
        return
    row = rows[2]
    assert row["role"] == "real" and row["name"] == "real against real" and row["n"] == n and row["nfe"] is None
    assert row["frechet"] == frechet(images[:n], images, seed=0).floor  # the same rows against the same others
    assert row["frechet"] < 0.2 and row["precision"] > 0.5 and row["endpoint"] is None and row["seconds"] is None
    assert said(rows) == []  # it is no plan
    assert len(verdict(teacher, teacher, plan, problem, data, paired=True, real=False)) == 2  # none without data


def test_a_plan_that_wins_is_named():
    def row(role, name, nfe, value):
        return {"role": role, "name": name, "nfe": nfe, "frechet": value, "against": "digits"}

    rows = [row("student", "student", 2, 0.5), row("teacher", "t", 100, 0.1), row("plan", "ddim", 1, 0.9),
            row("learned", "own", 2, 0.4), row("plan", "unipc", 3, 0.3), row("learned", "better", 3, 0.2)]  # fmt: skip
    first, second = said(rows)
    assert first == (
        "At no more evaluations the teacher's best plan, own, does better than the student: 0.4 against 0.5 of the"
        " student (frechet digits)."
    )
    assert second == "From 3 evaluations on a plan of the teacher does better: better, 0.2."
    assert said(rows[:3])[0].startswith("At no more evaluations the teacher's best plan, ddim, does not reach")


@pytest.mark.slow
def test_digits_are_judged_by_their_labels_and_data(monkeypatch):
    monkeypatch.setattr(module, "FEW", (1,))
    teacher = fs.load("digits")
    problem = unseen(teacher, 0, 96, None)
    rows = verdict(teacher, teacher, fs.plan(teacher.process, "ddim", 1), problem, None, paired=True)
    assert rows[1]["accuracy"] > 0.9 and rows[0]["against"].startswith("digits") and rows[0]["frechet"] > 0
