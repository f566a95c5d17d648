"""Conditions: checked once, before anything runs."""

from __future__ import annotations

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.core.denoiser import Denoiser

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "value,expected",
    [
        (2, [2, 2, 2]),
        (None, [7, 7, 7]),
        ([0, 6, 7], [0, 6, 7]),
        (torch.tensor([1, 2, 3], dtype=torch.int32), [1, 2, 3]),
        ([4], [4, 4, 4]),
    ],
)
def test_labels_as_long_tensors(value, expected):
    labels = Label(7).check("label", value, 3, CPU)
    assert labels.dtype == torch.long and labels.tolist() == expected


@pytest.mark.parametrize(
    "value,message",
    [
        (7, "label 7 is out of range: 0 to 6, or None for no label"),
        (8, "label 8 is out of range: 0 to 6, or None for no label"),
        (-1, "label -1 is out of range"),
        ([0, 9, 1], "label 9 is out of range"),
        (1.0, "label must be whole numbers, got torch.float32"),
        (True, "label must be whole numbers, got torch.bool"),
        ([1, 2], r"label must be one number or 3 of them, got shape \(2,\)"),
        ([[1, 2, 3]], r"label must be one number or 3 of them, got shape \(1, 3\)"),
        ("cat", "label must be whole numbers, got 'cat'"),
        ([1, None, 2], "label must be whole numbers, got"),
    ],
)
def test_bad_labels(value, message):
    with pytest.raises(ValueError, match=message):
        Label(7).check("label", value, 3, CPU)


def test_condition_names():
    model = Denoiser()
    assert model.check_condition({"label": None}, 2, CPU) == {}
    with pytest.raises(ValueError, match="this model is unconditional: it takes no 'label'"):
        model.check_condition({"label": 3}, 2, CPU)
    model.conditions = {"label": Label(4)}
    with pytest.raises(ValueError, match="unknown condition 'lable': did you mean 'label'"):
        model.check_condition({"lable": 3}, 2, CPU)
    assert model.check_condition({}, 2, CPU)["label"].tolist() == [4, 4]
