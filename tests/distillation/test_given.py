"""Conditions of a user's own: rows by the model's checks, draws of them, and real samples that have them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import fewstep as fs
from fewstep.conditions.prompt import Encoder, Prompt, complete
from fewstep.conditions.text import Text
from fewstep.core.denoiser import Denoiser
from fewstep.distillation import distill as module
from fewstep.distillation.distill import distill
from fewstep.distillation.given import given_rows, rows_with

RUN = {"iterations": 3, "batch": 8, "on_collapse": "go on", "judge": False}
pytestmark = pytest.mark.filterwarnings("ignore:At iteration")


@pytest.fixture
def captioned(teacher):
    teacher.conditions = {**teacher.conditions, "text": Text(("red", "blue", "circle"), 2)}
    return teacher


def test_values_and_lists_become_rows(captioned):
    found = given_rows(captioned, {"label": 2, "text": ["red circle", "blue", ""]})
    assert found["label"].tolist() == [2, 2, 2] and found["text"].tolist() == [[1, 3], [2, 0], [0, 0]]
    assert given_rows(captioned, {"label": [1, 0]})["label"].tolist() == [1, 0]
    for given, said in (
        ({}, "at least one row"),
        ({"label": []}, "at least one row"),
        ({"label": [1, 2], "text": ["red"]}, "go together row by row, and here are {'label': 2, 'text': 1}"),
        ({"label": 4}, "label 4 is out of range"),
        ({"text": "green"}, "unknown word 'green'"),
        ({"lable": 1}, "unknown condition 'lable': did you mean 'label'"),
    ):
        with pytest.raises(ValueError, match=said):
            given_rows(captioned, given)


def test_every_part_of_a_prompt_follows_from_its_text():
    def encode(prompts, device, windows=1):
        numbers = torch.tensor([float(len(prompt or "")) for prompt in prompts])
        return {"text": numbers[:, None, None].expand(-1, 3, 4), "pooled": numbers[:, None].expand(-1, 2)}

    encoder, model = Encoder(encode), Denoiser()
    model.conditions = {"text": Prompt(encoder, "text", 3, 4), "pooled": Prompt(encoder, "pooled", 2, 2)}
    model.check_condition = lambda given, *rest: Denoiser.check_condition(
        model, complete(model.conditions, given), *rest
    )
    found = given_rows(model, {"text": ["abc", "a"]})
    assert found["text"][:, 0, 0].tolist() == found["pooled"][:, 0].tolist() == [3.0, 1.0]


def test_draws_are_of_the_rows_and_together(setting):
    given = {"label": torch.tensor([2, 0, 2])}
    drawn = setting(given=given).condition(3000, torch.Generator().manual_seed(1))["label"]
    assert set(drawn.tolist()) == {0, 2} and abs(float((drawn == 2).double().mean()) - 2 / 3) < 0.03
    without = setting().condition(50, torch.Generator().manual_seed(1))["label"]
    assert set(without.tolist()) == {0, 1, 2}


def test_real_samples_are_those_with_a_condition_that_is_given(setting, points):
    assert rows_with(points, {"label": torch.tensor([1, 1])}).tolist() == list(range(1, 60, 3))
    images, named = setting(data=points, given={"label": torch.tensor([1])}).real(40, torch.Generator().manual_seed(0))
    assert set(named["label"].tolist()) == {1}
    assert all(any(torch.equal(image, points.raw[row]) for row in range(1, 60, 3)) for image in images)
    with pytest.raises(ValueError, match="no sample of the data 'points' has one of the conditions"):
        rows_with(points, {"label": torch.tensor([3])})
    with pytest.raises(ValueError, match="'points' cannot be chosen by 'text', and this method takes real samples"):
        rows_with(points, {"text": torch.zeros(1, 2)})
    both = dataclasses.replace(points, given={"text": torch.arange(120).reshape(60, 2) % 4})
    chosen = rows_with(both, {"label": torch.tensor([0, 1]), "text": torch.tensor([[0, 1], [0, 1]])})
    assert chosen.tolist() == [row for row in range(60) if row % 3 < 2 and row % 2 == 0]


def test_a_student_of_some_conditions(teacher, monkeypatch):
    monkeypatch.setattr(module, "CHECKED", 24)
    monkeypatch.setattr(module, "CHECK_NFE", 8)
    seen = []
    solve = module.solve
    monkeypatch.setattr(module, "solve", lambda *a, **k: seen.append(solve(*a, **k)) or seen[-1])
    made = distill(teacher, "kd", conditions={"label": [0, 2]}, pairs=40, plan="ddim", **RUN)
    assert seen[0].condition["label"].tolist() == [0, 2] * 12  # the checks'
    assert fs.sample(made.model, 3, label=2).shape == (3, 2)
    assert made.notes[0] == "It was trained for label [0, 2] alone."
    with pytest.raises(ValueError, match="label 7 is out of range"):
        distill(teacher, "kd", conditions={"label": 7}, **RUN)


def test_the_verdict_is_on_these_conditions(teacher, points, monkeypatch):
    monkeypatch.setattr(module, "CHECKED", 24)
    monkeypatch.setattr(module, "CHECK_NFE", 8)
    monkeypatch.setattr(module, "JUDGED", 16)
    seen = {}
    monkeypatch.setattr(module, "verdict", lambda *a, **k: seen.update(k, problem=a[3]) or [])
    monkeypatch.setattr(module, "said", lambda rows: [])
    distill(teacher, "dmd2", conditions={"label": 1}, data=points, features=["block.1"], **RUN | {"judge": True})
    assert set(seen["problem"].condition["label"].tolist()) == {1} and seen["real"] is False
    assert seen["given"]["label"].tolist() == [1]
