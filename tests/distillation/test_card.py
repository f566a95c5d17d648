"""What a student's folder says of itself."""

from __future__ import annotations

import pytest

import fewstep as fs
from fewstep.core.student import Student
from fewstep.distillation import distill as module
from fewstep.distillation.card import student_card
from fewstep.distillation.distill import distill, plan_of

ROW = {"name": "student", "nfe": 1, "n": 24, "against": "points, train split", "frechet": 0.41234, "precision": 0.5,
       "recall": 0.25, "accuracy": None, "endpoint": 0.1}  # fmt: skip


def test_it_says_how_the_student_was_made_and_the_verdict(teacher):
    teacher.student = Student("jump", "kd", "digits", 3.0, (3.0,), 2.0, 1200, 34567.0)
    teacher.plan = plan_of(teacher.process, "jump", 1, 3.0, (3.0,))
    real = ROW | {"name": "real against real", "nfe": None, "endpoint": None}
    card = student_card(teacher, "mine", [ROW, real], ["A plan does better."])
    made = card.partition("## How it was made")[2].splitlines()
    assert "# mine\n" in card and 'fs.load("mine")' in card and ": 1 evaluation of the network a sample" in card
    assert made[2:] == [
        "Distilled by `kd` from `digits` with guidance 2 inside: 1,200 iterations, 34,567 evaluations of one sample.",
        "", "- A plan does better.", "",
        "24 samples of noises that it was not trained on, against points, train split.", "",
        "| sampler | evaluations | Frechet distance | precision | recall | accuracy | endpoint error |",
        "|---|---|---|---|---|---|---|",
        "| student | 1 | 0.4123 | 0.5 | 0.25 |  | 0.1 |",
        "| real against real |  | 0.4123 | 0.5 | 0.25 |  |  |",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:At iteration")
def test_a_runs_folder_has_it(teacher, tmp_path, monkeypatch):
    for name, value in {"CHECKED": 16, "CHECK_NFE": 6, "JUDGED": 16}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "verdict", lambda *_, **__: [ROW])
    monkeypatch.setattr(module, "said", lambda rows: [f"Of {len(rows)} row."])
    options = {"iterations": 2, "batch": 4, "pairs": 8, "plan": "ddim", "on_collapse": "go on"}
    made = distill(teacher, "kd", out=tmp_path / "runs" / "mine", conditions={"label": 2}, **options)
    card = (tmp_path / "runs" / "mine" / "model" / "README.md").read_text()
    assert made.notes[0] == "It was trained for label 2 alone." and made.notes[-1] == "Of 1 row."
    assert "# mine\n" in card and all(f"- {note}\n" in card for note in made.notes) and "| student | 1 |" in card
    again = made.save(tmp_path / "other" / "model")  # a run's place, in whose name it is
    assert (again / "README.md").read_text() == card.replace("mine", "other")
    assert fs.load(again).plan.nfe == 1
