"""Scales of guidance: ranges, draws, who is told, and the teacher that follows."""

from __future__ import annotations

import math

import pytest
import torch
from scaled import Scaled

import fewstep as fs
from fewstep.conditions.number import Number
from fewstep.distillation.scales import (
    by_scale,
    drawn_scales,
    followed,
    inside,
    numbers_of,
    put_inside,
    scale_range,
    told_scale,
)


def test_one_scale_or_a_range():
    assert scale_range("scales", 2) == (2.0, 2.0) and scale_range("scales", [1, 4]) == (1.0, 4.0)
    for wrong in (-1, [3, 2], [1, 2, 3], [0, math.inf], math.nan):
        with pytest.raises(ValueError, match=r"scales must be one scale of at least 0 or a range \[low, high\]"):
            scale_range("scales", wrong)
    assert put_inside((2.0, 2.0)) == 2.0 and put_inside((1.0, 1.0)) is None
    assert told_scale((1.0, 4.0)) == Number(1.0, 4.0, 2.5)
    with pytest.raises(ValueError, match="told its scale needs a range"):
        told_scale((2.0, 2.0))
    drawn = drawn_scales((1.0, 4.0), torch.tensor([0.0, 0.5]))
    assert drawn.tolist() == [1.0, 2.5]


def test_numbers_of_a_known_range_are_drawn():
    model = Scaled()
    assert inside(model) is None and numbers_of(model, 3, torch.Generator()) == {}
    model.conditions |= {"guidance": Number(1.0, 4.0), "open": Number(default=1.0)}
    found = numbers_of(model, 1000, torch.Generator().manual_seed(0))
    assert list(found) == ["guidance"] and inside(model) == (1.0, 4.0)
    assert float(found["guidance"].mean()) == pytest.approx(2.5, abs=0.1)


def test_a_teacher_follows_the_scale_that_a_student_is_told():
    teacher, student = Scaled(), Scaled()
    student.conditions |= {"guidance": Number(1.0, 4.0, 2.5)}
    assert followed(teacher, teacher) is teacher and followed(student, student) is student
    guided = followed(teacher, student)
    x, t = torch.ones(2, 3, dtype=torch.float64), torch.tensor(1.0)
    named = {"label": torch.zeros(2).long()}
    for scale in (1.5, 4.0):
        found = guided(x, t, **named, guidance=torch.full((2,), scale)).x0
        assert torch.equal(found, fs.guide(teacher, "cfg", scale=scale)(x, t, **named).x0)
    assert torch.equal(guided(x, t, **named).x0, by_scale(teacher, 2.5)(x, t, **named).x0)
    with pytest.raises(ValueError, match="guidance already"):
        by_scale(guided)
