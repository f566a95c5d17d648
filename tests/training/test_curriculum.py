from __future__ import annotations

import pytest
import torch

from fewstep.data import moving
from fewstep.data.open import open_built_in
from fewstep.training.curriculum import Curriculum, rows_that_say
from fewstep.training.draws import Draws
from fewstep.training.recipe import Recipe

RECIPE = {
    "data": {"source": "moving", "captions": True},
    "network": {"name": "temporal-unet", "width": [8], "attention": [], "embedding": 8},
    "process": {"name": "edm"},
    "rows": {"name": "curriculum", "words": "red circle", "first": 10},
    "train": {"batch": 4, "steps": 2, "lr": 1e-3},
}


@pytest.fixture(scope="module")
def data():
    return open_built_in("moving", split="train")


@pytest.fixture(autouse=True, scope="module")
def few():
    """A small part of the rows looked at, a few of them taken."""
    patch = pytest.MonkeyPatch()
    patch.setattr("fewstep.training.curriculum.PART", 100)
    patch.setattr(rows_that_say, "__defaults__", (8,))
    yield
    patch.undo()


def test_the_first_samples_are_of_the_kind_and_then_all_rows_come_in_their_order(data):
    draws = Curriculum(3, data, "red circle", 20)
    rows = draws.rows(0, 30)
    shown = moving.scenes(rows[:20])
    assert not shown.colour.any() and not shown.shape.any()
    assert torch.equal(rows[20:], Draws(3, len(data)).rows(0, 10))
    assert set(rows[:8].tolist()) == set(rows[8:16].tolist()) == set(rows_that_say(data, "red circle").tolist())


def test_the_position_is_all_there_is_to_know(data):
    whole = Curriculum(3, data, "red circle", 20).rows(0, 30)
    parts = [Curriculum(3, data, "red circle", 20).rows(seen, 6) for seen in range(0, 30, 6)]
    assert torch.equal(torch.cat(parts), whole)


def test_words_follow_one_another(data):
    rows = rows_that_say(data, " moving  left ")
    assert (moving.scenes(rows).direction == 0).all() and len(rows) == 8


def test_a_recipe_names_it():
    made = Recipe.from_dict(RECIPE).make_draws(open_built_in("moving", split="train"))
    assert isinstance(made, Curriculum) and made.first == 10


def test_what_it_cannot_choose_from_is_said(data):
    with pytest.raises(ValueError, match="chooses by captions, and 'digits' comes without"):
        Curriculum(0, open_built_in("digits"), "red circle", 5)
    with pytest.raises(ValueError, match="needs words of a caption"):
        Curriculum(0, data, " ", 5)
    with pytest.raises(ValueError, match="first must be"):
        Curriculum(0, data, "red circle", 0)
    with pytest.raises(ValueError, match="purpel"):
        Curriculum(0, data, "purpel circle", 5)
    with pytest.raises(ValueError, match="no caption of 'moving' says 'circle red'"):
        rows_that_say(open_built_in("moving", split="validation"), "circle red")
