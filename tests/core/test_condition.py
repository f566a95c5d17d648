"""Conditions: what callers give, as tensors; what is refused; and their configurations."""

from __future__ import annotations

import pytest
import torch

from fewstep.conditions.label import Label
from fewstep.conditions.picture import Picture
from fewstep.conditions.text import Text
from fewstep.core.condition import condition_from_config

CPU = torch.device("cpu")
TEXT = Text(("a", "red", "green", "circle", "square"), 4)


@pytest.mark.parametrize("kind", [Label(7), TEXT, Picture((2, 3, 5))])
def test_configurations_come_back(kind):
    assert condition_from_config(kind.config()) == kind


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="unknown condition 'labels': did you mean 'label'"):
        condition_from_config({"kind": "labels"})


@pytest.mark.parametrize(
    "value, expected",
    [
        ("a red circle", [[1, 2, 4, 0]] * 3),
        (None, [[0, 0, 0, 0]] * 3),
        ("", [[0, 0, 0, 0]] * 3),
        (["A Red circle", None, "square"], [[1, 2, 4, 0], [0, 0, 0, 0], [5, 0, 0, 0]]),
        (torch.tensor([1, 3, 5, 0]), [[1, 3, 5, 0]] * 3),
        (torch.tensor([[1, 3, 5, 0], [2, 0, 0, 0], [0, 0, 0, 0]]), [[1, 3, 5, 0], [2, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_captions_become_indices(value, expected):
    tokens = TEXT.check("text", value, 3, CPU)
    assert tokens.dtype == torch.long
    assert tokens.tolist() == expected


def test_indices_read_back_as_words():
    assert TEXT.words(TEXT.tokens("a green square")) == "a green square"


@pytest.mark.parametrize(
    "value, message",
    [
        ("a redd circle", "unknown word 'redd': did you mean 'red'"),
        ("a red circle a red", "a caption has at most 4 words, got 5"),
        (["a", "red"], "text must be one caption or 3 of them, got 2"),
        (7, "text must be a caption or a list of captions, got 7"),
        ([], "text must be a caption or a list of captions"),
        (torch.zeros(3, 5, dtype=torch.long), r"whole numbers \(3, 4\), got shape \(3, 5\)"),
        (torch.zeros(3, 4), "got shape .* of torch.float32"),
        (torch.full((3, 4), 6), "text holds indices outside 0 to 5"),
    ],
)
def test_faulty_captions(value, message):
    with pytest.raises(ValueError, match=message):
        TEXT.check("text", value, 3, CPU)


def test_pictures_go_with_every_sample():
    kind, one = Picture((2, 3)), torch.randn(2, 3)
    assert torch.equal(kind.check("y", one, 4, CPU), one.expand(4, 2, 3))
    many = torch.randn(4, 2, 3)
    assert torch.equal(kind.check("y", many, 4, CPU), many)


@pytest.mark.parametrize(
    "value, message",
    [
        (None, r"this model needs y, a tensor \(2, 3\) or \(B, 2, 3\)"),
        (torch.zeros(3, 2), r"y must have shape \(2, 3\) or \(B, 2, 3\), got \(3, 2\)"),
        (torch.zeros(5, 2, 3), r"y must have shape \(2, 3\) or \(4, 2, 3\), got \(5, 2, 3\)"),
        (torch.zeros(2, 3, dtype=torch.long), r"y must hold floats, or bytes \(uint8\), got torch.int64"),
        ("picture", r"y names a file that does not exist: 'picture'"),
    ],
)
def test_faulty_pictures(value, message):
    with pytest.raises(ValueError, match=message):
        Picture((2, 3)).check("y", value, 4, CPU)
